"""build-enclave: its flags. What it does is in ``image_build``, which loads when the command runs."""

from __future__ import annotations

import argparse
import os

from alcove.cli import output
from alcove.cli.parsers import Commands, add_signing_flags, command


def add_commands(commands: Commands) -> None:
    """Add build-enclave: AWS's flags, and Alcove's own."""
    parser = command(
        commands,
        "build-enclave",
        build_enclave,
        "make an enclave image (EIF) from a container image",
        "nitro-cli build-enclave --docker-dir . --docker-uri app:latest --output-file app.eif",
    )
    parser.add_argument("--docker-uri", required=True, metavar="IMAGE", help="docker-archive: and oci: forms work too")
    parser.add_argument("--docker-dir", metavar="DIR", help="build the Dockerfile in this directory first")
    parser.add_argument("--output-file", required=True, metavar="FILE", help="the image; replaced when it is there")
    parser.add_argument("--name", help="the image's name")
    parser.add_argument("--version", help="the image's version")
    parser.add_argument("--metadata", metavar="JSON", help="a file of at most 4096 bytes")
    add_signing_flags(parser)
    own = parser.add_argument_group("Alcove's own")
    own.add_argument("--arch", choices=("x86_64", "aarch64"), help="of the enclave; this machine's when not given")
    own.add_argument("--blobs", metavar="DIR", default=os.environ.get("NITRO_CLI_BLOBS"), help="AWS's boot files")
    own.add_argument("--build-time", metavar="RFC3339", help="SOURCE_DATE_EPOCH, or now, when not given")
    own.add_argument("--max-layer", metavar="SIZE", help="what a layer may unpack to; 64G when not given")
    own.add_argument(
        "--oci-entrypoint",
        action="store_true",
        help="run ENTRYPOINT and CMD in WORKDIR as USER, as Docker does; PCR0 and PCR2 are then not nitro-cli's",
    )
    own.add_argument(
        "--show-log",
        action="store_true",
        help='let the parent see its output (`alcove logs`) outside debug mode, as LABEL alcove.log="true" does',
    )
    own.add_argument("--explain", action="store_true", help="say what was measured into which PCR, on standard error")
    parser.set_defaults(parser=parser)


def build_enclave(arguments: argparse.Namespace) -> None:
    """``build-enclave``."""
    from alcove.cli.image_build import build  # noqa: PLC0415 - only this command needs the image room

    if (arguments.signing_certificate is None) != (arguments.private_key is None):
        arguments.parser.error("--signing-certificate and --private-key need each other")
    output.result({"Measurements": build(arguments).to_json()})
