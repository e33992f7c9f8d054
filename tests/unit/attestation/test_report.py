from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tests.unit.attestation.chains import ENCLAVE_ID, World

from alcove.attestation import report
from alcove.attestation.document import AttestationDocument, parse_document
from alcove.attestation.verify import Root


def test_people_see_who_what_and_when(world: World) -> None:
    """Identity, time, registers with their meaning, own fields, and the chain as a tree with dates."""
    document = parse_document(world.document(user_data=b"hello", public_key=b"\xff" * 70, nonce=b""))
    lines = report.describe(document)
    text = "\n".join(lines)
    assert lines[0].endswith(ENCLAVE_ID)
    assert lines[1].endswith("2026-03-04T05:06:07.890+00:00")
    assert f"  PCR0     {'01' * 48}  the image" in lines
    assert "  zero     PCR3, PCR5-7, PCR9-15" in lines
    assert "user data  text, 5 bytes: hello" in lines
    at = lines.index("public key bytes, 70 bytes:")
    assert lines[at + 1 : at + 3] == ["  " + "ff" * 48, "  " + "ff" * 22]
    assert "nonce      empty" in lines
    assert lines[-6] == f"  sha256:{world.root.hex}"
    assert lines[-5].startswith("    root      aws.nitro-enclaves  2026-03-04 04:06:07Z to 2056-03-04 05:06:07Z")
    assert lines[-1].startswith(f"            enclave   {ENCLAVE_ID}")
    assert "NOT VALID" not in text
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


IMAGE = {0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48}


def test_a_document_is_compared_with_an_image(world: World) -> None:
    """Each register that measures the image says whether it is this one's; PCR8 of an unsigned image is zero."""
    document = parse_document(world.document())
    lines = report.describe(document, IMAGE)
    assert "image      this one" in lines
    assert sum(line.endswith("  matches") for line in lines) == 4
    other = report.describe(document, {**IMAGE, 2: b"\x09" * 48, 8: b"\x08" * 48})
    assert "image      NOT this one, by PCR2, PCR8" in other
    assert f"  PCR2     {'03' * 48}  the application  DIFFERS: {'09' * 48}" in other
    assert report.to_json(document, IMAGE)["image"] == {
        "matches": True, "PCR0": True, "PCR1": True, "PCR2": True, "PCR8": True,
    }  # fmt: skip
    assert "image" not in report.to_json(document)


def test_a_debug_document_is_of_no_image(world: World) -> None:
    """Zero registers match nothing that was measured."""
    zero = dict.fromkeys((0, 1, 2, 8), bytes(48))
    document = parse_document(world.document(pcrs={**world.pcrs, **zero}))
    assert report.compare(document, IMAGE) == {0: False, 1: False, 2: False, 8: True}


def test_a_certificate_that_was_not_valid_is_marked(world: World) -> None:
    """A reader of an unchecked document sees what the verifier would say."""
    document = dataclasses.replace(parse_document(world.document()), timestamp_ms=1)
    assert sum("NOT VALID" in line for line in report.describe(document)) == 5


def test_awss_root_is_named(aws: Path) -> None:
    """The published fingerprint is known."""
    document = parse_document((aws / "aws-2024-08-07.cbor").read_bytes())
    assert f"  sha256:{Root.AWS.hex} (AWS)" in report.describe(document)
    assert report.to_json(document)["root"] == Root.AWS.hex
