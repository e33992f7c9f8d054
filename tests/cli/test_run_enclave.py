"""What run-enclave refuses before there is a machine: one line, AWS's status, and nothing left."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.format import HEADER_SIZE, SectionType
from alcove.image.metadata import ImageMetadata

BIN = Path(sys.executable).parent
METADATA = ImageMetadata("app", "1", {"BuildTime": "2026"}, {}, None)
ROLE = "arn:aws:iam::123456789012:role/parents/web"


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """run-enclave in directories of the test's own; whatever happens, nothing may be left of it."""
    places = {f"ALCOVE_{name}": str(directory / name.lower()) for name in ("STATE", "RUN", "CONFIG")}
    done = subprocess.run(
        [BIN / "nitro-cli", "run-enclave", *arguments],
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    left = {path.relative_to(directory / "run").as_posix() for path in (directory / "run").rglob("*")}
    assert left <= {"registry.lock", "enclaves", "cid", "vsock"}  # the lock and the empty directories
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What it said, without the line that every start has."""
    return [line for line in done.stderr.splitlines() if line != "Start allocating memory..."]


def changed(image: bytes) -> bytes:
    """Another kernel in the same image, with the checksum put right."""
    image = image.replace(b"kernel", b"Kernel")
    crc = zlib.crc32(image[: HEADER_SIZE - 4] + image[HEADER_SIZE:])
    return image[: HEADER_SIZE - 4] + struct.pack(">I", crc) + image[HEADER_SIZE:]


def test_a_signature_of_another_image_stops_the_start(tmp_path: Path) -> None:
    """E59: the image was changed after it was signed, though its checksum is right."""
    key, certificate, image = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "app.eif"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-days", "2",
         "-subj", "/CN=signer", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    write_eif(
        image,
        NewHeader(0),
        [
            NewSection(SectionType.KERNEL, (b"kernel",)),
            NewSection(SectionType.CMDLINE, (b"cmdline",)),
            NewSection(SectionType.METADATA, (METADATA.pack(),)),
            NewSection(SectionType.RAMDISK, (b"ramdisk",)),
        ],
    )
    sign = [BIN / "nitro-cli", "sign-eif", "--eif-path", image, "--private-key", key, "--signing-certificate"]
    subprocess.run([*sign, certificate], check=True, capture_output=True)
    image.write_bytes(changed(image.read_bytes()))
    done = run(tmp_path, "--eif-path", str(image), "--cpu-count", "1", "--memory", "64")
    assert done.returncode == 59
    assert len(lines(done)) <= 2
    assert lines(done)[0].startswith("[ E59 ] ")


@pytest.mark.parametrize(
    "flags",
    [
        ["--parent-role", "web"],
        ["--parent-role", "arn:aws:iam::123456789012:user/web"],
        ["--parent-role", f"{ROLE}\n"],
        ["--parent-role", f"{ROLE}/"],
        ["--boot-timeout", "0"],
        ["--boot-timeout", "86401"],
        ["--boot-timeout", "nan"],
        ["--boot-timeout", "inf"],
    ],
)
def test_alcoves_own_flags_are_checked(tmp_path: Path, flags: list[str]) -> None:
    """E03 for what is no role's ARN and for a time that is none, with the config file as with flags."""
    config = tmp_path / "enclave.json"
    config.write_text(json.dumps({"eif_path": "none.eif", "memory_mib": 64, "cpu_count": 1}))
    for asked in (["--eif-path", "none.eif", "--cpu-count", "1", "--memory", "64"], ["--config", str(config)]):
        done = run(tmp_path, *asked, *flags)
        assert done.returncode == 3
        assert lines(done)[0].startswith("[ E03 ] ")


def test_the_config_file_goes_with_alcoves_own_flags(tmp_path: Path) -> None:
    """A role and a time-out beside --config are taken; what stops this start is the image that is not there."""
    config = tmp_path / "enclave.json"
    config.write_text(json.dumps({"eif_path": "none.eif", "memory_mib": 64, "cpu_count": 1}))
    done = run(tmp_path, "--config", str(config), "--parent-role", ROLE, "--boot-timeout", "5")
    assert done.returncode == 19
