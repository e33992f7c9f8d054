"""The file format of the vectors (README.md): read beside write, and only syntax.

    kind: image
    expect: refused
    comment: The magic number is ELF's.
    size: 639
    sha256: 74a1…

    7f454c46000400000000000040000000
    00 * 216

A text has one form only: what `parse` accepts, `format` gives back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMMON = {"kind", "expect", "field", "offset", "comment", "source", "size", "sha256"}
KEYS = {  # kind → the keys of its own; README.md explains each
    "image": {
        "version", "architecture", "flags", "section", "pcr0", "pcr1", "pcr2", "pcr8", "crc", "signature", "metadata",
        "at", "boot",
    },
    "signature": {"pcr0", "pcr8", "at", "algorithm"},
    "payload": {"register-index", "register-value"},
    "metadata": {"image-name", "image-version", "custom"},
    "measurement": {"rule", "pcr"},
    "cpio": {"entry"},
    "layers": {"layers", "entry"},
    "document": {"step", "root", "at", "max-age", "skew", "limit", "nonce", "require", "debug"},
    "request": {"call", "arguments", "mechanisms"},
    "refused-request": {"mechanisms"},
}  # fmt: skip
REPEATED = {"section", "entry", "require"}
_WIDTH = 32  # bytes a line
_RUN = 32  # equal bytes that are worth a line of their own
_REPEAT = re.compile(r"([0-9a-f]{2}) \* ([1-9][0-9]*)")


class VectorError(ValueError):
    """A text that is not a vector."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One vector: its fields in their order, without size and sha256, and the payload that they speak of."""

    name: str
    fields: tuple[tuple[str, str], ...]
    payload: bytes

    def __post_init__(self) -> None:
        keys = [key for key, _ in self.fields]
        unknown = set(keys) - COMMON - KEYS.get(self.get("kind"), set())
        twice = {key for key in keys if keys.count(key) > 1 and key not in REPEATED}
        missing = {"kind", "expect", "comment"} - set(keys)
        if unknown or twice or missing:
            raise VectorError(f"{self.name}: unknown {unknown}, twice {twice}, missing {missing}")

    def get(self, key: str, default: str = "") -> str:
        """The first value of a key, or the default."""
        return next((value for name, value in self.fields if name == key), default)

    def all(self, key: str) -> list[str]:
        """Every value of a key."""
        return [value for name, value in self.fields if name == key]

    def format(self) -> str:
        """The vector as text."""
        check = (("size", str(len(self.payload))), ("sha256", hashlib.sha256(self.payload).hexdigest()))
        head = "".join(f"{key}: {value}".rstrip() + "\n" for key, value in (*self.fields, *check))
        return head + "\n" + "".join(line + "\n" for line in _lines(self.payload))

    @classmethod
    def parse(cls, name: str, text: str) -> Vector:
        """The vector in a text.

        Raises:
            VectorError: When a line is malformed, a key unknown, or the payload not the one that was described.
        """
        head, _, body = text.partition("\n\n")
        fields = []
        for line in head.splitlines():
            key, colon, value = line.partition(":")
            if not colon:
                raise VectorError(f"{name}: {line!r} is not a field")
            fields.append((key, value.strip()))
        payload = b"".join(_bytes(line) for line in body.splitlines())
        vector = cls(name, tuple(f for f in fields if f[0] not in {"size", "sha256"}), payload)
        if text != vector.format():
            raise VectorError(f"{name}: size or sha256 are not the payload's, or the text is not in its only form")
        return vector


def load(directory: Path) -> list[Vector]:
    """Every vector below a directory, by name."""
    files = sorted(directory.rglob("*.txt"))
    return [Vector.parse(str(file.relative_to(directory).with_suffix("")), file.read_text()) for file in files]


def _bytes(line: str) -> bytes:
    match = _REPEAT.fullmatch(line)
    try:
        return bytes.fromhex(match[1]) * int(match[2]) if match else bytes.fromhex(line)
    except ValueError:
        raise VectorError(f"{line!r} is not a line of payload") from None


def _lines(payload: bytes) -> Iterator[str]:
    """The payload in hexadecimal, long runs of one byte as `XX * COUNT`."""
    at = 0
    for run in re.finditer(rb"(.)\1{%d,}" % (_RUN - 1), payload, re.DOTALL):
        yield from _plain(payload[at : run.start()])
        yield f"{run[1].hex()} * {len(run[0])}"
        at = run.end()
    yield from _plain(payload[at:])


def _plain(part: bytes) -> Iterator[str]:
    return (part[at : at + _WIDTH].hex() for at in range(0, len(part), _WIDTH))
