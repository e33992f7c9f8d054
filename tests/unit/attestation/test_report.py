from __future__ import annotations

import json
from pathlib import Path

from tests.unit.attestation.chains import ENCLAVE_ID, World

from alcove.attestation import report
from alcove.attestation.document import AttestationDocument, parse_document


def test_people_see_who_what_and_when(world: World) -> None:
    """Identity, time, registers with their meaning, own fields, and the chain as a tree with dates."""
    document = parse_document(world.document(user_data=b"hello", public_key=b"\xff" * 70, nonce=b""))
    lines = report.describe(document)
    text = "\n".join(lines)
    assert lines[0].endswith(ENCLAVE_ID)
    assert lines[1].endswith("2026-03-04T05:06:07.890+00:00")
    assert f"  PCR0     {'01' * 48}  the image" in lines
    assert "  zero     PCR3, PCR5-7, PCR9-15" in lines
    assert 'user data  "hello" (5 bytes)' in lines
    assert f"public key {'ff' * 64}… (70 bytes)" in lines
    assert "nonce      empty" in lines
    assert lines[-5].startswith("  root      aws.nitro-enclaves  2026-03-04 04:06:07Z to 2056-03-04 05:06:07Z")
    assert lines[-1].startswith(f"          enclave   {ENCLAVE_ID}")
    assert "DEBUG" not in text


def test_programs_see_the_same_as_json(world: World) -> None:
    """Hexadecimal for bytes, null for what is absent."""
    answer = json.loads(json.dumps(report.to_json(parse_document(world.document(user_data=b"\1")))))
    assert answer["module_id"] == ENCLAVE_ID
    assert answer["pcrs"]["PCR0"] == "01" * 48
    assert (answer["user_data"], answer["nonce"], answer["debug"]) == ("01", None, False)
    assert [part["level"] for part in answer["chain"]] == ["root", "regional", "zonal", "instance", "enclave"]
    assert answer["chain"][0]["subject"] == "C=US, O=Amazon, OU=AWS, CN=aws.nitro-enclaves"


def test_debug_mode_is_said_aloud(aws: Path) -> None:
    """A reader cannot miss it."""
    document = parse_document((aws / "aws-2022-10-12-debug.cbor").read_bytes())
    assert report.is_debug(document)
    assert any("DEBUG" in line for line in report.describe(document))


def test_whatever_a_document_holds_can_be_shown() -> None:
    """Unverified rubbish neither fails nor reaches the terminal as control characters."""
    document = AttestationDocument("\x1b[2J", 1, {0: b"\1" * 48}, b"leaf", (b"r", b"x"), user_data=b"\x1b[2J\xff")
    text = "\n".join(report.describe(document))
    assert "\x1b" not in text
    assert "no certificate of this kind" in text
    assert report.to_json(document)["chain"][1] == {"level": "authority", "error": "not a certificate of this kind"}
