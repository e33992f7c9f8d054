"""build-enclave: its flags. What it does is in ``image_build``, which loads when the command runs."""

from __future__ import annotations

import argparse
import os

from alcove.cli import output
from alcove.cli.parsers import Commands, command


def add_commands(commands: Commands) -> None:
    """Add build-enclave."""
    parser = command(
        commands,
        "build-enclave",
        build_enclave,
        "make an enclave image (EIF) from a container image",
        "nitro-cli build-enclave --docker-dir . --docker-uri app:latest --output-file app.eif",
    )
    parser.add_argument("--docker-uri", required=True, metavar="IMAGE", help="docker-archive: and oci: forms work too")
    parser.add_argument("--docker-dir", metavar="DIR", help="build the Dockerfile in this directory first")
    parser.add_argument("--output-file", required=True, metavar="FILE")
    parser.add_argument("--signing-certificate", metavar="PEM")
    parser.add_argument("--private-key", metavar="PEM")
    parser.add_argument("--name", help="the image's name")
    parser.add_argument("--version", help="the image's version")
    parser.add_argument("--metadata", metavar="JSON", help="a file of at most 4096 bytes")
    parser.add_argument("--blobs", metavar="DIR", default=os.environ.get("NITRO_CLI_BLOBS"), help="AWS's boot files")


def build_enclave(arguments: argparse.Namespace) -> None:
    """``build-enclave``."""
    from alcove.cli.image_build import build  # noqa: PLC0415 - only this command needs the image room

    output.result({"Measurements": build(arguments).to_json()})
