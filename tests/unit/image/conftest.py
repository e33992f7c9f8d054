"""Images and signers for the tests of this room."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.format import SectionType
from alcove.image.metadata import ImageMetadata
from alcove.image.signing import Signer

VENDOR = "application/vnd.oci.image"
METADATA = ImageMetadata("app", "1.0", {"BuildTime": "2026"}, {"Id": "sha256:0"}, {"Team": "blue"})


def sections(metadata: bytes = METADATA.pack()) -> list[NewSection]:
    """The sections of a small image, in nitro-cli's order."""
    return [
        NewSection(SectionType.KERNEL, (b"ker", b"nel")),
        NewSection(SectionType.CMDLINE, (b"cmdline",)),
        NewSection(SectionType.METADATA, (metadata,)),
        NewSection(SectionType.RAMDISK, (b"ramdisk0",)),
        NewSection(SectionType.RAMDISK, (b"ram", b"", b"disk1")),
    ]


@pytest.fixture
def eif(tmp_path: Path) -> Path:
    """A sound, unsigned image."""
    path = tmp_path / "app.eif"
    write_eif(path, NewHeader(0), sections())
    return path


def _make_pem(curve: ec.EllipticCurve) -> tuple[bytes, bytes]:
    """A self-signed certificate, valid in 2026, and its key, both in PEM."""
    key = ec.generate_private_key(curve)
    name = x509.Name(
        [
            x509.NameAttribute(x509.oid.NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "Example"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2027, 1, 1, tzinfo=dt.UTC))
        .sign(key, hashes.SHA384())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture
def make_pem() -> Callable[[ec.EllipticCurve], tuple[bytes, bytes]]:
    """Makes certificate and key on a curve."""
    return _make_pem


@pytest.fixture
def pem() -> tuple[bytes, bytes]:
    """Certificate and key on P-384."""
    return _make_pem(ec.SECP384R1())


@pytest.fixture
def signer(pem: tuple[bytes, bytes]) -> Signer:
    """A signer on P-384."""
    return Signer.from_pem(*pem)


def add_blob(layout: Path, data: bytes, kind: str) -> dict[str, object]:
    """Put a blob into an OCI layout; its descriptor."""
    digest = hashlib.sha256(data).hexdigest()
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest).write_bytes(data)
    return {"mediaType": f"{VENDOR}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


@pytest.fixture
def make_layout(tmp_path: Path) -> Callable[..., Path]:
    """Makes an OCI layout of layers given as tar bytes; `compress` is applied to each."""

    def make(*layers: bytes, config: dict[str, Any] | None = None, compress: Callable[[bytes], bytes] = bytes) -> Path:
        layout = tmp_path / "layout"
        shutil.rmtree(layout, ignore_errors=True)
        diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        image = {
            "architecture": "amd64",
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{VENDOR}.manifest.v1+json",
            "config": add_blob(layout, json.dumps(image).encode(), "config.v1+json"),
            "layers": [add_blob(layout, compress(layer), "layer.v1.tar") for layer in layers],
        }
        index = {"schemaVersion": 2, "manifests": [add_blob(layout, json.dumps(manifest).encode(), "manifest.v1+json")]}
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (layout / "index.json").write_text(json.dumps(index))
        return layout

    return make
