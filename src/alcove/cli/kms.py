"""``alcove kms``: serving, and the commands beside it."""

from __future__ import annotations

import argparse
import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING

from alcove.cli import kms_audit, kms_policy, kms_root, kms_users, output
from alcove.cli.kms_store import add_store_flags, guard, opened, root_place, store_path, store_url
from alcove.cli.parsers import Commands, command, command_group
from alcove.errors import UsageError

if TYPE_CHECKING:
    from alcove.kms.rootplace import RootPlace

_REGION = re.compile(r"([a-z]+-){2,3}[0-9]{1,2}", re.ASCII)  # as the model has it


def add_commands(commands: Commands) -> None:
    """Add ``kms`` and its sub-commands."""
    inner = command_group(commands, "kms", "AWS's KMS on one's own machine")
    parser = command(
        inner,
        "serve",
        serve,
        "serve the KMS API, and STS beside it, over HTTP or HTTPS",
        "alcove kms serve   # the first start says what to export; then, for one: aws kms list-keys",
    )
    parser.add_argument("--listen", default="127.0.0.1:4599", metavar="HOST:PORT", help="127.0.0.1:4599 when not given")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM, with its chain; https from then on")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM, without a passphrase")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the address; 1")
    parser.add_argument(
        "--root",
        action="append",
        metavar="ROOT",
        help="aws, a PEM file or sha256:HEX (again for more); default: this machine's own",
    )
    parser.add_argument(
        "--crl",
        action="append",
        type=Path,
        metavar="FILE",
        help="revocation lists that documents are held against (again for more); read again when the file changes",
    )
    parser.add_argument(
        "--region",
        action="append",
        metavar="REGION",
        help="a Region that is served (again for more); default: AWS_REGION, or us-east-1",
    )
    parser.add_argument("--log", metavar="FILE", help="refusals, faults and dead workers as JSON lines; - for stderr")
    add_store_flags(parser)
    kms_users.add_commands(inner)
    kms_policy.add_commands(inner)
    kms_root.add_commands(inner)
    kms_audit.add_commands(inner)


def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    from alcove.cli.attest_inputs import parse_roots  # noqa: PLC0415 - other commands do not need the KMS
    from alcove.kms.log import open_log, silent  # noqa: PLC0415
    from alcove.kms.server import ServeConfig  # noqa: PLC0415
    from alcove.kms.server import serve as serve_kms  # noqa: PLC0415
    from alcove.kms.stores import one_line  # noqa: PLC0415

    guard()
    host, _, port = arguments.listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"`{arguments.listen}` is no address", hint="use HOST:PORT, such as 127.0.0.1:4599")
    regions = _regions(arguments)
    store = store_path(arguments.store)
    place = root_place(arguments)
    config = ServeConfig(
        store=store_url(arguments.store),
        root_key=place,
        audit=store.with_suffix(".audit.jsonl"),
        roots=parse_roots(arguments.root),
        crls=tuple(arguments.crl or ()),
        host=host.strip("[]"),
        port=int(port),
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        region=regions[0],
        more_regions=tuple(regions[1:]),
        workers=arguments.workers,
        log=open_log(arguments.log) if arguments.log else silent,
    )

    def ready(url: str) -> None:
        made = _administrator(arguments, store, place, regions)
        output.say(f"listening on {url}")
        if arguments.tls_cert is None and not _is_loopback(host):
            output.warn("plaintexts cross the network in clear: give --tls-cert and --tls-key, or listen on 127.0.0.1")
        if made:
            output.say(f"made an administrator: export AWS_ENDPOINT_URL_KMS={url} AWS_SHARED_CREDENTIALS_FILE={made}")

    with one_line():
        serve_kms(config, ready=ready)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _regions(arguments: argparse.Namespace) -> list[str]:
    from alcove.enclave.identity import region  # noqa: PLC0415 - other commands do not need it

    regions: list[str] = arguments.region or [region()]
    for name in regions:
        if not _REGION.fullmatch(name):
            raise UsageError(f"`{name}` is no Region", hint="use a name such as eu-central-1")
    return regions


def _administrator(arguments: argparse.Namespace, store: Path, place: RootPlace, regions: list[str]) -> Path | None:
    """The first user of a store in which nothing is; the file of mode 0600 that has its key as AWS's tools read it."""
    from alcove.kms.rootplace import write_new  # noqa: PLC0415 - other commands do not need the KMS
    from alcove.kms.users import add_user  # noqa: PLC0415

    file = store.with_suffix(".credentials")
    with opened(arguments, place=place) as new:
        if new.users() or new.roles() or any(new.keys(name, "", 1) for name in regions):
            return None
        if file.exists():
            output.warn(f"{file} is of an earlier store; `alcove kms user add NAME --admin` makes a user of this one")
            return None
        try:
            user = add_user(new, "admin", admin=True)
        except UsageError:  # another server of the same store was faster
            return None
    secret = f"aws_secret_access_key = {user.secret_access_key}\nregion = {regions[0]}"
    write_new(file, f"[default]\naws_access_key_id = {user.access_key_id}\n{secret}\n", "the credentials")
    return file
