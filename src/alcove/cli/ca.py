"""``alcove ca``: the root of trust, its chains, its fleet and its revocation lists."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alcove.cli import ca_keys, output
from alcove.cli.parsers import Commands, command, command_group
from alcove.enclave.paths import Paths
from alcove.errors import MachineError, UsageError

if TYPE_CHECKING:
    from alcove.attestation.store import Store

_LEVELS: Final = ("regional", "zonal", "instance")
_REASONS: Final = {
    "unspecified": "unspecified", "key-compromise": "key_compromise", "superseded": "superseded",
    "affiliation-changed": "affiliation_changed", "cessation-of-operation": "cessation_of_operation",
}  # fmt: skip
_MAX_DAYS: Final = 3650


def add_commands(commands: Commands) -> None:
    """Add ``ca`` and its sub-commands."""
    inner = command_group(commands, "ca", "the root of trust")
    parser = command(inner, "init", init, "make this machine's root", "alcove ca init --key-file /media/stick/root.pem")
    ca_keys.add_new_key_flags(parser)
    parser = command(inner, "show", show, "show the certificates, where their keys are, and what needs doing")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser = command(inner, "export", export, "print the root's certificate for verifiers")
    parser.add_argument("--all", action="store_true", help="every trusted root, the chains and the revocation lists")
    parser.add_argument("--output", type=Path, metavar="PATH", help="a file; with --all a directory")
    _add_rotation(inner)
    _add_fleet(inner)
    _add_revocation(inner)


def _add_rotation(group: Commands) -> None:
    parser = command(
        group,
        "rotate",
        rotate,
        "renew the chain now, or change to another root in two steps: --root, then --switch",
        "alcove ca rotate --root; alcove ca export --all --output for-verifiers; alcove ca rotate --switch",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--level", choices=_LEVELS, default="regional", help="renew from here down; default: regional")
    what.add_argument("--root", action="store_true", help="make the root that is to come; it signs nothing yet")
    what.add_argument("--switch", action="store_true", help="change to it; the old root stays trusted on this machine")
    ca_keys.add_new_key_flags(parser)
    parser = command(group, "forget", forget, "trust a former root no longer on this machine")
    parser.add_argument("fingerprint", help="its SHA-256, or the first 8 digits and more")


def _add_fleet(group: Commands) -> None:
    parser = command(
        group,
        "request",
        request,
        "on a parent: print a request for a certificate from another machine's root; the key stays here",
        "ssh web-1 alcove ca request | alcove ca issue-parent web-1 --csr - | ssh web-1 alcove ca install -",
    )
    _add_output(parser)
    parser = command(group, "issue-parent", issue_parent, "where the root is: answer a parent's request")
    parser.add_argument("name", help="what the parent is called here")
    parser.add_argument("--csr", required=True, metavar="FILE", help="the request; - for standard input")
    parser.add_argument("--level", choices=_LEVELS, default="regional", help="lasts 20 days, 5 days or 1 day")
    ca_keys.add_passphrase_flag(parser)
    _add_output(parser)
    parser = command(group, "install", install, "on a parent: take the answer")
    parser.add_argument("file", help="what issue-parent printed; - for standard input")
    parser.add_argument("--replace-root", action="store_true", help="give up this machine's own root, key and all")


def _add_revocation(group: Commands) -> None:
    parser = command(group, "revoke", revoke, "revoke a certificate and sign its issuer's list")
    parser.add_argument("certificate", help="a serial number, a file, or the name of a parent")
    parser.add_argument("--reason", choices=list(_REASONS), default="unspecified", help="as the list says it")
    ca_keys.add_passphrase_flag(parser)
    _add_days(parser)
    parser = command(group, "crl", crl, "sign every revocation list anew, and print them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write a file for each issuer instead")
    ca_keys.add_passphrase_flag(parser)
    _add_days(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE", help="write here instead of standard output")


def _add_days(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=int, default=30, help="how long the list is valid; default: 30")


def init(arguments: argparse.Namespace) -> None:
    """Make a root."""
    from alcove.attestation.authority import Authority  # noqa: PLC0415 - only these commands need it
    from alcove.attestation.root_key import Kind  # noqa: PLC0415

    ca_keys.guard()
    directory = Paths.from_environment().authority
    if (directory / "root.pem").exists():  # before anybody types a passphrase
        raise UsageError(f"there is a root in `{directory}` already", hint="`alcove ca rotate --root` makes another")
    authority = Authority.create(
        directory, key=ca_keys.new_key(arguments), owner=ca_keys.owner(arguments), years=ca_keys.years(arguments)
    )
    output.text(authority.root.hex)
    output.say(f"root: {authority.root_path}")
    kind = authority.store.key_place().kind
    output.say(f"key: {kind}")
    if kind is Kind.PLAIN:
        output.say("hint: a passphrase (--protect, --key-file) or a token (--pkcs11) keeps a root's key better")


def show(arguments: argparse.Namespace) -> None:
    """Show everything."""
    from alcove.attestation.inventory import take_inventory  # noqa: PLC0415 - only this command needs it
    from alcove.cli.ca_tree import draw  # noqa: PLC0415

    ca_keys.guard()  # the files have keys in them
    inventory = take_inventory(_store(), datetime.now(UTC))
    if arguments.json:
        output.result(inventory)
        return
    for line in draw(inventory):
        output.text(line)
    for notice in inventory["Notices"]:
        output.warn(notice["Text"])
        output.say(f"hint: {notice['Hint']}")


def export(arguments: argparse.Namespace) -> None:
    """Print the root, or write everything that is public."""
    from alcove.attestation.inventory import public_files  # noqa: PLC0415 - only this command needs it

    store = _store()
    if not arguments.all:
        store.root()
        _deliver(store.root_path.read_bytes(), arguments.output)
    elif arguments.output is None:
        raise UsageError("--all writes several files", hint="name a directory with --output")
    else:
        for name, content in public_files(store).items():
            _write(arguments.output / name, content)
            output.say(f"wrote {arguments.output / name}")


def rotate(arguments: argparse.Namespace) -> None:
    """Renew the chain, make the root to come, or change to it."""
    from alcove.attestation.place import Level  # noqa: PLC0415 - only these commands need it
    from alcove.attestation.store import common_name, read_entry  # noqa: PLC0415
    from alcove.enclave.identity import place  # noqa: PLC0415

    ca_keys.guard()
    paths = Paths.from_environment()
    if arguments.root:
        authority = ca_keys.load(paths.authority)
        key = ca_keys.new_key(arguments, instead_of=authority.store.key_place())
        root = authority.prepare_root(key, owner=ca_keys.owner(arguments), years=ca_keys.years(arguments))
        output.text(root.hex)
        output.say("it signs nothing yet: give `alcove ca export --all` to verifiers, then `alcove ca rotate --switch`")
        return
    ca_keys.refuse_new_key(arguments)
    renew = frozenset(Level if arguments.switch else [*Level][_LEVELS.index(arguments.level) :])
    if arguments.switch:
        old = ca_keys.load(paths.authority)
        authority = old.switch_root(ca_keys.passphrase(old.store.next, arguments))
        output.text(f"root: {authority.root.hex}")
        output.say(f"trusted on this machine until `alcove ca forget {old.root.hex[:16]}`: {old.root.hex}")
    elif Level.REGIONAL in renew:
        authority = ca_keys.unlocked(paths.authority, arguments)
    else:
        authority = ca_keys.load(paths.authority)
    here = place(paths)
    authority.parent_identity(here.instance_id, here.region, datetime.now(UTC), renew=renew)
    for level in (level for level in Level if level in renew):
        name = here.instance_id if level is Level.INSTANCE else level
        certificate = read_entry(authority.store.chain_path(here.region, name)).certificate
        output.text(f"{level}: {common_name(certificate)} until {certificate.not_valid_after_utc.isoformat()}")
    output.say("enclaves that run use it from their next document on")


def forget(arguments: argparse.Namespace) -> None:
    """Drop a former root."""
    former = ca_keys.load(Paths.from_environment().authority).forget_root(arguments.fingerprint)
    output.say(f"no longer trusted on this machine: {former}")


def request(arguments: argparse.Namespace) -> None:
    """Print a request."""
    from alcove.attestation.enrol import make_request  # noqa: PLC0415 - only this command needs it
    from alcove.enclave.identity import place  # noqa: PLC0415

    ca_keys.guard()
    _deliver(make_request(_store(), place(Paths.from_environment())), arguments.output)


def issue_parent(arguments: argparse.Namespace) -> None:
    """Answer a request."""
    from alcove.attestation.enrol import MAX_REQUEST, answer, read_request  # noqa: PLC0415
    from alcove.attestation.place import Level  # noqa: PLC0415 - only these commands need it

    ca_keys.guard()
    asked = _read(arguments.csr, MAX_REQUEST)
    place, _ = read_request(asked)  # before anybody types a passphrase
    optional = arguments.level != "regional"  # for the others it is needed only when our own is near its end
    authority = ca_keys.unlocked(Paths.from_environment().authority, arguments, optional=optional)
    chain = answer(authority, arguments.name, asked, Level(arguments.level), datetime.now(UTC))
    _deliver(chain, arguments.output)
    output.say(f"{arguments.name}: {arguments.level} certificate for {place.instance_id} in {place.region}")


def install(arguments: argparse.Namespace) -> None:
    """Take an answer."""
    from alcove.attestation import enrol  # noqa: PLC0415 - only this command needs it
    from alcove.enclave.identity import place  # noqa: PLC0415

    ca_keys.guard()
    chain, store = _read(arguments.file, enrol.MAX_ANSWER), _store()
    here = place(Paths.from_environment())
    level = enrol.install(store, chain, here, datetime.now(UTC), replace_root=arguments.replace_root)
    output.text(ca_keys.load(store.directory).root.hex)
    output.say(f"this machine is {here.instance_id} in {here.region}, with a {level} certificate of this root")


def revoke(arguments: argparse.Namespace) -> None:
    """Revoke a certificate."""
    from cryptography import x509  # noqa: PLC0415 - only these commands need it

    from alcove.attestation import revocation  # noqa: PLC0415

    ca_keys.guard()
    days = _days(arguments)
    store = _store()
    store.root()
    certificate = revocation.find_certificate(store, arguments.certificate)
    by_root = certificate.issuer == store.root().subject
    authority = ca_keys.unlocked(store.directory, arguments) if by_root else ca_keys.load(store.directory)
    reason = x509.ReasonFlags[_REASONS[arguments.reason]]
    path = revocation.revoke(authority, certificate, datetime.now(UTC), reason=reason, life=days)
    output.text(str(path))
    output.say(f"revoked {certificate.serial_number:x}: {certificate.subject.rfc4514_string()}")


def crl(arguments: argparse.Namespace) -> None:
    """Sign the lists anew."""
    from alcove.attestation import revocation  # noqa: PLC0415 - only these commands need it
    from alcove.attestation.root_key import Kind  # noqa: PLC0415

    ca_keys.guard()
    days = _days(arguments)
    authority = ca_keys.unlocked(Paths.from_environment().authority, arguments, optional=True)
    problem = revocation.refresh(authority, datetime.now(UTC), days)
    for path in authority.store.crl_paths():
        if arguments.output is None:
            output.data(path.read_bytes())
        else:
            _write(arguments.output / path.name, path.read_bytes())
            output.say(f"wrote {arguments.output / path.name}")
    if problem is not None:
        if authority.store.key_place().kind is not Kind.ELSEWHERE:
            raise problem  # the others are done
        output.warn(f"the root's own list is not signed here: {problem.message}")


def _days(arguments: argparse.Namespace) -> timedelta:
    if not 1 <= arguments.days <= _MAX_DAYS:
        raise UsageError(f"--days is from 1 to {_MAX_DAYS}")
    return timedelta(days=arguments.days)


def _store() -> Store:
    from alcove.attestation.store import Store  # noqa: PLC0415 - only these commands need it

    return Store(Paths.from_environment().authority)


def _read(name: str, limit: int) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(limit + 1)
        with Path(name).open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"cannot read `{name}`: {error.strerror}", code="E19") from None


def _deliver(content: bytes, path: Path | None) -> None:
    if path is None:
        output.data(content)
    else:
        _write(path, content)


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise MachineError(f"cannot write `{path}`: {error.strerror}") from None
