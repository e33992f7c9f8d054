"""The vectors, and what tests need to hold them against the code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from vectors.vectorfile import Vector, load

from alcove.errors import ImageFormatError

VECTORS = Path(__file__).parent.parent.parent / "vectors"


def vectors(kind: str, *, but: str = "") -> pytest.MarkDecorator:
    """A parameter `vector` for each vector of a kind, but for those with that outcome."""
    cases = [vector for vector in load(VECTORS / "eif" / kind) if vector.get("expect") != but]
    assert cases
    return pytest.mark.parametrize("vector", cases, ids=[case.name for case in cases])


def check_fault(vector: Vector, error: ImageFormatError) -> None:
    """The error must be at the field and the offset that the vector names."""
    offset = vector.get("offset")
    assert (error.field, error.offset) == (vector.get("field"), int(offset) if offset else None)


def layout(directory: Path, layers: list[bytes]) -> Path:
    """An OCI layout of these layers."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{digest}", "size": len(data)}

    parts = [blob(layer) for layer in layers]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [part["digest"] for part in parts]}}
    manifest = {"schemaVersion": 2, "config": blob(json.dumps(config).encode()), "layers": parts}
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode())]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return directory
