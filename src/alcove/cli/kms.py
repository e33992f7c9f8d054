"""``alcove kms``: serving, and the commands beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from alcove.cli import kms_policy, kms_root, kms_users, output
from alcove.cli.kms_store import add_store_flags, guard, root_place, store_path
from alcove.cli.parsers import Commands, command
from alcove.errors import UsageError


def add_commands(commands: Commands) -> None:
    """Add ``kms`` and its sub-commands."""
    group = commands.add_parser("kms", help="AWS's KMS on one's own machine").add_subparsers(
        metavar="COMMAND", required=True
    )
    parser = command(
        group,
        "serve",
        serve,
        "serve the KMS API, and STS beside it, over HTTP or HTTPS",
        "alcove kms serve & export AWS_ENDPOINT_URL_KMS=http://127.0.0.1:4599; aws kms list-keys",
    )
    parser.add_argument("--listen", default="127.0.0.1:4599", metavar="HOST:PORT")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE")
    parser.add_argument("--tls-key", type=Path, metavar="FILE")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument(
        "--root",
        action="append",
        metavar="ROOT",
        help="aws, a PEM file or sha256:HEX (again for more); default: this machine's own",
    )
    add_store_flags(parser)
    kms_users.add_commands(group)
    kms_policy.add_commands(group)
    kms_root.add_commands(group)


def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    from alcove.cli.attest_inputs import parse_roots  # noqa: PLC0415 - other commands do not need the KMS
    from alcove.enclave.identity import region  # noqa: PLC0415
    from alcove.kms.server import ServeConfig  # noqa: PLC0415
    from alcove.kms.server import serve as serve_kms  # noqa: PLC0415

    guard()
    host, _, port = arguments.listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"`{arguments.listen}` is no address", hint="use HOST:PORT, such as 127.0.0.1:4599")
    store = store_path(arguments.store)
    config = ServeConfig(
        store=f"sqlite:///{store}",
        root_key=root_place(arguments),
        audit=store.with_suffix(".audit.jsonl"),
        roots=parse_roots(arguments.root),
        host=host.strip("[]"),
        port=int(port),
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        region=region(),
        workers=arguments.workers,
    )
    serve_kms(config, ready=lambda url: output.say(f"listening on {url}"))
