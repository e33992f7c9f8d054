"""``alcove attest verify``, ``show`` and ``measure``.

With the package alone, on any system, the first two run: what they do not need is imported by the one that does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from alcove.attestation import report
from alcove.attestation.crl import MAX_FILE, RevocationLists
from alcove.attestation.document import parse_document
from alcove.attestation.verify import VerifiedAttestation
from alcove.attestation.verify import verify as verify_document
from alcove.cli import output
from alcove.cli.attest_inputs import (
    hint_at_text,
    parse_hex,
    parse_policy_file,
    parse_roots,
    parse_time,
    read_bytes,
    read_document,
)
from alcove.errors import AttestationError, PolicyError

NOT_VALID: Final = 3  # design: "Command lines that scripts rely on"
POLICY_NOT_MET: Final = 4


def verify(arguments: argparse.Namespace) -> int:
    """Check a document."""
    check = _prepared(arguments)
    document = read_document(arguments.file)
    try:
        verified = check(document)
    except AttestationError as error:
        status = POLICY_NOT_MET if isinstance(error, PolicyError) else NOT_VALID
        if arguments.json:
            output.result(
                {"valid": False, "step": error.step, "reason": error.message, "policy": status == POLICY_NOT_MET}
            )
        output.error("alcove", hint_at_text(error, document))
        return status
    if arguments.json:
        output.result({"valid": True, "steps": list(verified.steps)} | report.to_json(verified.document))
    else:
        for line in (*(f"ok  {step}" for step in verified.steps), *report.describe(verified.document)):
            output.text(line)
    return 0


def _prepared(arguments: argparse.Namespace) -> Callable[[bytes], VerifiedAttestation]:
    """The verification that the arguments ask for; UsageError when they are not right."""
    at, now = parse_time(arguments.at), datetime.now(UTC)
    nonce = parse_hex("--nonce", arguments.nonce)
    policy = parse_policy_file(arguments.policy, allow_debug=arguments.allow_debug)
    crls = RevocationLists.from_files(*(read_bytes(path, MAX_FILE) for path in arguments.crl or ()))
    roots = parse_roots(arguments.root, create=False)

    def check(document: bytes) -> VerifiedAttestation:
        return verify_document(
            document,
            roots=roots,
            policy=policy,
            at=at,
            nonce=nonce,
            max_age=arguments.max_age,
            now=now if arguments.max_age is not None and at is None else None,
            strict=arguments.strict,
            crls=crls,
        )

    return check


def show(arguments: argparse.Namespace) -> int:
    """Show a document, unchecked."""
    image = None if arguments.eif is None else registers(arguments.eif)
    data = read_document(arguments.file)
    try:
        document = parse_document(data)
    except AttestationError as error:
        output.error("alcove", hint_at_text(error, data))
        return NOT_VALID
    if arguments.json:
        output.result({"verified": False} | report.to_json(document, image))
        return 0
    for line in ("NOT CHECKED: `alcove attest verify` checks", *report.describe(document, image)):
        output.text(line)
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """Print the policy that pins an image."""
    output.result({f"PCR{index}": value.hex() for index, value in registers(arguments.eif).items()})


def registers(path: Path) -> dict[int, bytes]:
    """PCR0, PCR1, PCR2, and PCR8 of a signed image."""
    from alcove.image.describe import describe_image  # noqa: PLC0415 - not the verifier's

    description = describe_image(path)
    for warning in description.warnings:
        output.warn(warning)
    measured: dict[str, str] = description.json["Measurements"]
    return {int(name[3:]): bytes.fromhex(value) for name, value in measured.items() if name.startswith("PCR")}
