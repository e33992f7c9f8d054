"""``alcove attest``: check and show attestation documents."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alcove.cli import output
from alcove.enclave.paths import Paths
from alcove.errors import AttestationError, PolicyError, UsageError

if TYPE_CHECKING:
    from alcove.attestation.verify import Root

Commands = Any  # argparse's sub-parsers action is private

NOT_VALID: Final = 3  # design: "Command lines that scripts rely on"
POLICY_NOT_MET: Final = 4


def add_commands(commands: Commands) -> None:
    """Add ``attest`` and its sub-commands."""
    group = commands.add_parser("attest", help="attestation documents").add_subparsers(metavar="COMMAND", required=True)
    parser = group.add_parser(
        "verify",
        help="check a document, step by step",
        description="exit status: 0 valid, 3 not a valid document, 4 valid but the policy is not met",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--root",
        action="append",
        metavar="ROOT",
        help="aws, a PEM file or sha256:HEX (again for more); default: this machine's own",
    )
    parser.add_argument("--at", default="now", metavar="TIME", help="now, document, or an RFC 3339 time")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="JSON or YAML such as {PCR0: hex}")
    parser.add_argument("--nonce", metavar="HEX")
    parser.add_argument("--allow-debug", action="store_true", help="accept zero PCRs of an enclave in debug mode")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(handler=verify)
    parser = group.add_parser("show", help="show what a document says, without checking it")
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(handler=show)
    parser = group.add_parser("measure", help="print the policy that pins an image")
    parser.add_argument("eif", type=Path)
    parser.set_defaults(handler=measure)


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}", code="E19") from None


def own_roots() -> tuple[Root, ...]:
    """This machine's root, which the first use makes, the one to come and the former ones."""
    from alcove.attestation.authority import Authority  # noqa: PLC0415 - only some commands need it

    return Authority.open(Paths.from_environment().authority).trusted


def parse_roots(texts: list[str] | None) -> tuple[Root, ...]:
    """Trust anchors from ``aws``, ``sha256:HEX`` or PEM files."""
    from alcove.attestation.verify import Root  # noqa: PLC0415 - only some commands need it

    def parse(text: str) -> Root:
        if text == "aws":
            return Root.AWS
        if text.startswith("sha256:"):
            return Root.from_fingerprint(text.removeprefix("sha256:"))
        return _root_of_file(Path(text))

    try:
        return tuple(parse(text) for text in texts) if texts else own_roots()
    except ValueError as error:
        raise UsageError(f"this is no root: {error}", hint="give aws, a PEM file or sha256:HEX") from None


def _root_of_file(path: Path) -> Root:
    from alcove.attestation.verify import Root  # noqa: PLC0415 - only some commands need it

    pem = read_bytes(path)
    try:
        return Root.from_pem(pem)
    except ValueError:
        raise ValueError(f"`{path}` does not hold one certificate in PEM") from None


def _time(text: str) -> datetime | None:
    if text == "now":
        return datetime.now(UTC)
    if text == "document":
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"`{text}` is no time", hint="give now, document, or such as 2026-01-02T03:04:05Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _policy(path: Path | None, *, allow_debug: bool) -> Any:
    from alcove.attestation.policy import NoDebugMode, UnsafeAcceptDebugMode  # noqa: PLC0415
    from alcove.attestation.policy_file import parse_policy  # noqa: PLC0415

    if path is None:
        return UnsafeAcceptDebugMode() if allow_debug else NoDebugMode()
    text = read_bytes(path).decode(errors="replace")
    return parse_policy(text, read_file=lambda name: read_bytes(path.parent / name), allow_debug=allow_debug)


def verify(arguments: argparse.Namespace) -> int:
    """Check a document."""
    from alcove.attestation import report  # noqa: PLC0415 - only this command needs it
    from alcove.attestation.verify import verify as verify_document  # noqa: PLC0415

    try:
        nonce = None if arguments.nonce is None else bytes.fromhex(arguments.nonce)
    except ValueError:
        raise UsageError("--nonce is not hexadecimal") from None
    document = read_bytes(arguments.file)
    policy = _policy(arguments.policy, allow_debug=arguments.allow_debug)
    try:
        verified = verify_document(
            document, roots=parse_roots(arguments.root), policy=policy, at=_time(arguments.at), nonce=nonce
        )
    except AttestationError as error:
        status = POLICY_NOT_MET if isinstance(error, PolicyError) else NOT_VALID
        if arguments.json:
            output.result(
                {"valid": False, "step": error.step, "reason": error.message, "policy": status == POLICY_NOT_MET}
            )
        output.error("alcove", error)
        return status
    if arguments.json:
        output.result({"valid": True, "steps": list(verified.steps)} | report.to_json(verified.document))
    else:
        for step in verified.steps:
            output.text(f"ok  {step}")
        for line in report.describe(verified.document):
            output.text(line)
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Show a document, unchecked."""
    from alcove.attestation import report  # noqa: PLC0415 - only this command needs it
    from alcove.attestation.document import parse_document  # noqa: PLC0415

    try:
        document = parse_document(read_bytes(arguments.file))
    except AttestationError as error:
        output.error("alcove", error)
        return NOT_VALID
    if arguments.json:
        output.result(report.to_json(document))
    else:
        output.text("NOT CHECKED: `alcove attest verify` checks")
        for line in report.describe(document):
            output.text(line)
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """Print the policy that pins an image."""
    from alcove.image.describe import describe_eif as describe  # noqa: PLC0415 - only this command needs it

    measurements = describe(arguments.eif)["Measurements"]
    output.result({name: value for name, value in measurements.items() if name.startswith("PCR")})
