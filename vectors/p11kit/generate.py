"""Writes the vectors of p11-kit's messages, or checks that they are what the generators make.

python -m vectors.p11kit.generate [--check]
"""

from __future__ import annotations

from pathlib import Path

from vectors.collection import Collection, main
from vectors.p11kit import refused, requests

DIRECTORY = Path(__file__).parent
COLLECTIONS: list[Collection] = [requests.vector, refused.vector]

if __name__ == "__main__":
    main(DIRECTORY, COLLECTIONS)
