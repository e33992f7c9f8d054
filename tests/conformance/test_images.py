"""Whole images: structure, measurements, description and boot, as the vectors say."""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.corpus import check_fault, vectors
from vectors.vectorfile import Vector

from alcove.errors import AlcoveError, ImageFormatError
from alcove.image.boot import prepare_boot
from alcove.image.describe import describe
from alcove.image.reader import Eif, measure_eif, read_eif


def strictly(data: bytes) -> Eif:
    """The image as nitro-cli would have written it."""
    eif = read_eif(io.BytesIO(data))
    eif.refuse_findings()
    return eif


def leniently(data: bytes) -> Eif:
    """The image as far as it can be read."""
    return read_eif(io.BytesIO(data), lenient=True)


@vectors("image")
def test_structure(vector: Vector) -> None:
    """Sound: nothing is found; tolerated: found by the strict reader, noted by the lenient; refused: by both."""
    expect = vector.get("expect")
    if expect == "sound":
        assert strictly(vector.payload).findings == leniently(vector.payload).findings == ()
        return
    with pytest.raises(ImageFormatError) as caught:
        strictly(vector.payload)
    check_fault(vector, caught.value)
    if expect == "tolerated":
        (finding,) = leniently(vector.payload).findings
        check_fault(vector, finding.error())
        return
    assert expect == "refused"
    with pytest.raises(ImageFormatError) as caught:
        leniently(vector.payload)
    assert caught.value.field.partition("[")[0] == vector.get("field").partition("[")[0]


@vectors("image", but="refused")
def test_fields(vector: Vector) -> None:
    """Version, flags, architecture and the table of sections."""
    eif = leniently(vector.payload)
    header = eif.header
    table = [f"{section.type.name.lower()} {section.offset} {section.size}" for section in eif.sections]
    assert (str(header.version), f"{header.flags:#06x}") == (vector.get("version"), vector.get("flags"))
    assert (header.architecture, table) == (vector.get("architecture"), vector.all("section"))


@vectors("image", but="refused")
def test_measurements(vector: Vector) -> None:
    """PCR0, PCR1 and PCR2, and whether the checksum is right."""
    eif = leniently(vector.payload)
    measurer, crc = measure_eif(io.BytesIO(vector.payload), eif)
    measured = measurer.measurements()
    assert [value.hex() for value in (measured.pcr0, measured.pcr1, measured.pcr2)] == [
        vector.get(name) for name in ("pcr0", "pcr1", "pcr2")
    ]
    assert (crc == eif.header.eif_crc32) == (vector.get("crc") == "right")


@vectors("image", but="refused")
def test_description(vector: Vector) -> None:
    """What describe-eif shows: registers, signature, checksum, metadata."""
    eif = leniently(vector.payload)
    description = describe(io.BytesIO(vector.payload), eif, datetime.fromisoformat(vector.get("at")))
    shown: dict[str, Any] = description.json
    assert shown["IsSigned"] == (vector.get("signature") != "none")
    assert shown.get("SignatureCheck") == {"none": None, "holds": True, "fails": False}[vector.get("signature")]
    assert shown["Measurements"].get("PCR8", "") == vector.get("pcr8")
    assert shown["CheckCRC"] == (vector.get("crc") == "right")
    assert ("ImageName" in shown) == (vector.get("metadata") == "readable")
    wrong = (vector.get("crc"), vector.get("signature"), vector.get("metadata"), vector.get("expect"))
    assert bool(description.warnings) >= bool({"wrong", "fails", "unreadable", "tolerated"} & set(wrong))


@vectors("image", but="refused")
def test_boot(vector: Vector, tmp_path: Path) -> None:
    """Whether the image boots at the vector's time, or the code of the error; kernel and initrd are its own."""
    image = tmp_path / "x.eif"
    image.write_bytes(vector.payload)
    at = datetime.fromisoformat(vector.get("at"))
    architecture = vector.get("architecture")
    if vector.get("boot") != "yes":
        with pytest.raises(AlcoveError) as caught:
            prepare_boot(image, tmp_path, architecture=architecture, at=at)
        assert caught.value.code == vector.get("boot")
        return
    files = prepare_boot(image, tmp_path, architecture=architecture, at=at)
    parts = [
        (kind, vector.payload[int(at) + 12 :][: int(size)]) for kind, at, size in map(str.split, vector.all("section"))
    ]
    assert files.kernel.read_bytes() == next(data for kind, data in parts if kind == "kernel")
    assert files.initrd.read_bytes() == b"".join(data for kind, data in parts if kind == "ramdisk")
    assert files.measurements.pcr0.hex() == vector.get("pcr0")
