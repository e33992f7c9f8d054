"""Writes the vectors of the enclave image format, or checks that they are what the generators make.

python -m vectors.eif.generate [--check]
"""

from __future__ import annotations

from pathlib import Path

from vectors.collection import Collection, main
from vectors.eif import archives, images, images_refused, layers, layers_sparse, signatures, texts

DIRECTORY = Path(__file__).parent
COLLECTIONS: list[Collection] = [
    images.vector,
    images_refused.vector,
    signatures.vector,
    signatures.payload,
    texts.vector,
    texts.measurement,
    archives.vector,
    layers.vector,
    layers_sparse.vector,
]

if __name__ == "__main__":
    main(DIRECTORY, COLLECTIONS)
