"""Writes the vectors of attestation documents, or checks that they are what the generators make.

python -m vectors.attestation.generate [--check]
"""

from __future__ import annotations

from pathlib import Path

from vectors.attestation import certificates, chains, envelopes, payloads
from vectors.collection import Collection, main

DIRECTORY = Path(__file__).parent
COLLECTIONS: list[Collection] = [envelopes.vector, payloads.vector, certificates.vector, chains.vector]

if __name__ == "__main__":
    main(DIRECTORY, COLLECTIONS)
