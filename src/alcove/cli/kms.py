"""``alcove kms serve`` and ``alcove kms user``."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from alcove.cli import output
from alcove.enclave.paths import Paths
from alcove.errors import UsageError

Commands = Any  # argparse's sub-parsers action is private


def add_commands(commands: Commands) -> None:
    """Add ``kms`` and its sub-commands."""
    group = commands.add_parser("kms", help="AWS's KMS on one's own machine").add_subparsers(
        metavar="COMMAND", required=True
    )
    parser = group.add_parser("serve", help="serve the KMS API over HTTP or HTTPS")
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
    _store(parser)
    parser.set_defaults(handler=serve)
    user = group.add_parser("user", help="access keys").add_subparsers(metavar="COMMAND", required=True)
    parser = user.add_parser("add", help="make a user and an access key")
    parser.add_argument("name")
    parser.add_argument("--admin", action="store_true", help="may do everything that key policies delegate")
    parser.add_argument("--json", action="store_true")
    _store(parser)
    parser.set_defaults(handler=add_user)


def _store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="URL", help="sqlite:///PATH; default: in the state directory")


def _store_path(text: str | None) -> Path:
    if text is None:
        path = Paths.from_environment().state / "kms" / "kms.sqlite"
    elif text.startswith("sqlite:///") and len(text) > len("sqlite:///"):
        path = Path(text.removeprefix("sqlite:///")).absolute()
    else:
        raise UsageError(f"`{text}` is no store", hint="use sqlite:///PATH; an absolute path has four slashes")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _root_key(store: Path) -> Path:
    return store.with_suffix(".root-key")


def add_user(arguments: argparse.Namespace) -> None:
    """Make a user and print its access key, the only time that it is shown."""
    from alcove.kms import users  # noqa: PLC0415 - other commands do not need the KMS
    from alcove.kms.sqlite_store import open_store  # noqa: PLC0415

    path = _store_path(arguments.store)
    with contextlib.closing(open_store(f"sqlite:///{path}", _root_key(path))) as store:
        user = users.add_user(store, arguments.name, admin=arguments.admin)
    if arguments.json:
        output.result(user.to_json())
    else:
        for name, value in user.to_json().items():
            output.text(f"{name}: {value}")


def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    from alcove.cli.attest_inputs import parse_roots  # noqa: PLC0415 - other commands do not need the KMS
    from alcove.enclave.identity import region  # noqa: PLC0415
    from alcove.kms.server import ServeConfig  # noqa: PLC0415
    from alcove.kms.server import serve as serve_kms  # noqa: PLC0415

    host, _, port = arguments.listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"`{arguments.listen}` is no address", hint="use HOST:PORT, such as 127.0.0.1:4599")
    store = _store_path(arguments.store)
    config = ServeConfig(
        store=f"sqlite:///{store}",
        root_key=_root_key(store),
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
