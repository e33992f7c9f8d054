"""What build-enclave does: from flags to a build request, with our own kernel and init unless others are given."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from alcove.cli import output
from alcove.enclave.paths import Paths
from alcove.errors import UsageError
from alcove.guest import DEFAULT_CMDLINE, init_binary
from alcove.image.blobs import Blobs
from alcove.image.build import BuildRequest, build_enclave
from alcove.image.sign import load_signer
from alcove.image.signing import Signer
from alcove.image.sources.tools_tree import ensure_tools_tree
from alcove.types import Measurements


def build(arguments: argparse.Namespace) -> Measurements:
    """Build the image that the flags ask for."""
    request = BuildRequest(
        docker_uri=arguments.docker_uri,
        docker_dir=None if arguments.docker_dir is None else Path(arguments.docker_dir),
        output_file=Path(arguments.output_file),
        blobs=Blobs.from_directory(Path(arguments.blobs)) if arguments.blobs else default_blobs(),
        name=arguments.name,
        version=arguments.version,
        metadata=None if arguments.metadata is None else Path(arguments.metadata),
        signer=_signer(arguments),
    )
    return build_enclave(request, output.say)


def _signer(arguments: argparse.Namespace) -> Signer | None:
    certificate, key = arguments.signing_certificate, arguments.private_key
    if (certificate is None) != (key is None):
        raise UsageError("--signing-certificate and --private-key need each other")
    return None if certificate is None else load_signer(Path(certificate), Path(key))


def default_blobs() -> Blobs:
    """The tools tree's kernel and modules, our init, our command line."""
    tools = ensure_tools_tree(Paths.from_environment().state, output.say)
    return dataclasses.replace(Blobs.from_tools_tree(tools, init_binary("x86_64")), cmdline=DEFAULT_CMDLINE)
