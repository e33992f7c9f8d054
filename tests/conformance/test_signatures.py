"""Signature sections, metadata sections and registers, as the vectors say."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from tests.conformance.corpus import check_fault, vectors
from vectors.vectorfile import Vector

from alcove.errors import ImageFormatError
from alcove.image.measure import extend, pcr
from alcove.image.metadata import parse_metadata
from alcove.image.signature import PcrInfo, Sign1, pack_section, parse_section
from alcove.image.signing import SignatureRefusedError, certificate_der, verify_section


@vectors("signature")
def test_a_section_is_accepted_refused_or_malformed(vector: Vector) -> None:
    """The check of a signature accepts it, refuses it with E59, or cannot read it."""
    expect, pcr0 = vector.get("expect"), bytes.fromhex(vector.get("pcr0"))
    at = datetime.fromisoformat(vector.get("at"))
    if expect != "accepted":
        error = {"refused": SignatureRefusedError, "malformed": ImageFormatError}[expect]
        with pytest.raises(error) as caught:
            verify_section(vector.payload, pcr0, at)
        if isinstance(caught.value, ImageFormatError):
            check_fault(vector, caught.value)
        return
    entry = verify_section(vector.payload, pcr0, at)
    assert pcr(certificate_der(entry.certificate)).hex() == vector.get("pcr8")
    assert str(Sign1.parse(entry.sign1).algorithm) == vector.get("algorithm")


@vectors("signature")
def test_what_can_be_read_is_written_alike(vector: Vector) -> None:
    """A section that was packed from what was parsed parses to the same."""
    try:
        entry = parse_section(vector.payload)
    except ImageFormatError:
        assert vector.get("expect") == "malformed"
        return
    assert parse_section(pack_section(entry)) == entry


@vectors("payload")
def test_payload(vector: Vector) -> None:
    """The signed payload is read and packed to the same bytes, or refused."""
    if vector.get("expect") == "malformed":
        with pytest.raises(ImageFormatError) as caught:
            PcrInfo.parse(vector.payload)
        check_fault(vector, caught.value)
        return
    info = PcrInfo.parse(vector.payload)
    assert (str(info.index), info.value.hex()) == (vector.get("register-index"), vector.get("register-value"))
    assert info.pack() == vector.payload


@vectors("metadata")
def test_metadata(vector: Vector) -> None:
    """Metadata is read, or refused; tolerated is what only the lenient reader takes."""
    expect = vector.get("expect")
    if expect != "read":
        with pytest.raises(ImageFormatError) as caught:
            parse_metadata(vector.payload)
        check_fault(vector, caught.value)
    if expect == "refused":
        with pytest.raises(ImageFormatError):
            parse_metadata(vector.payload, lenient=True)
        return
    metadata = parse_metadata(vector.payload, lenient=expect == "tolerated")
    assert (metadata.name, metadata.version) == (vector.get("image-name"), vector.get("image-version"))
    assert metadata.custom == json.loads(vector.get("custom"))
    assert parse_metadata(metadata.pack()) == metadata


@vectors("measurement")
def test_measurement(vector: Vector) -> None:
    """A register extends its content's digest; the raw ones extend the content itself."""
    value = {"content": pcr, "raw": extend}[vector.get("rule")](vector.payload)
    assert value.hex() == vector.get("pcr")
