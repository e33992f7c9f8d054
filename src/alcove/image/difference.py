"""How two images' headers, command lines, metadata and signatures differ.

Core: values in, differences out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.hashes import SHA256

from alcove.errors import ImageFormatError, InputError
from alcove.image.contents import printable
from alcove.image.format import EifHeader
from alcove.image.metadata import parse_json
from alcove.image.signature import SignatureEntry, parse_section
from alcove.image.signing import load_certificate

CERTIFICATE_PCRS: Final = (8,)
_MISSING: Final = "(missing)"
_NOT_COMPARED: Final = {"section_offsets", "section_sizes", "eif_crc32", "num_sections"}  # they follow from the rest


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which two images differ.

    Attributes:
        where: The part of the image: `header`, `layout`, `kernel`, `ramdisk 1`, …
        what: A line for people.
        pcrs: The registers that it moves.
        detail: The same for programs.
    """

    where: str
    what: str
    pcrs: tuple[int, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As one object of `eif diff --json`."""
        return {"where": self.where, "what": self.what, "pcrs": list(self.pcrs)} | dict(self.detail)


def compare_headers(a: EifHeader, b: EifHeader) -> Iterator[Difference]:
    """Version, flags and the fields that nothing reads; offsets, sizes and checksum follow from the sections."""
    for name in EifHeader.__dataclass_fields__:
        old, new = getattr(a, name), getattr(b, name)
        if old == new or name in _NOT_COMPARED:
            continue
        change = f"{_flags(old)} → {_flags(new)}" if name == "flags" else f"{old} → {new}"
        yield Difference("header", f"{name}: {change}", detail={"field": name, "a": old, "b": new})


def _flags(flags: int) -> str:
    return f"{flags:#06x} ({'aarch64' if flags & 1 else 'x86_64'})"


def compare_cmdlines(a: bytes, b: bytes, pcrs: tuple[int, ...]) -> Iterator[Difference]:
    """The words of the kernel command line that came and went."""
    old, new = a.split(), b.split()
    gone, came = Counter(old) - Counter(new), Counter(new) - Counter(old)
    removed, added = ([printable(word) for word in words.elements()] for words in (gone, came))
    words = [f"- {word}" for word in removed] + [f"+ {word}" for word in added]
    if not words:
        words = ["the same words in another order" if old != new else "other white space between the same words"]
    detail = {"a": printable(a), "b": printable(b), "removed": removed, "added": added}
    yield Difference("cmdline", ", ".join(words), pcrs, detail)


def compare_metadata(a: bytes, b: bytes) -> Iterator[Difference]:
    """The paths of the keys whose values differ; nothing of it is measured."""
    try:
        pairs = list(_paths("", parse_json(a), parse_json(b)))
    except ImageFormatError as error:
        yield Difference("metadata", f"the bytes differ, and cannot be compared by key: {error.message}")
        return
    for path, old, new in pairs:
        texts = (_MISSING if value is _MISSING else _short(value) for value in (old, new))
        present = {name: value for name, value in (("a", old), ("b", new)) if value is not _MISSING}
        yield Difference("metadata", f"{path}: {' → '.join(texts)}", detail={"path": path} | present)
    if not pairs:
        yield Difference("metadata", "the same values in other bytes: white space, or the order of keys")


def _paths(path: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    """Path, value in A and value in B, of all leaves that differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a | b:
            shown = printable(key.encode("utf-8", "replace"))
            yield from _paths(f"{path}.{shown}".lstrip("."), a.get(key, _MISSING), b.get(key, _MISSING))
    elif isinstance(a, list) and isinstance(b, list):
        for index in range(max(len(a), len(b))):
            old, new = (items[index] if index < len(items) else _MISSING for items in (a, b))
            yield from _paths(f"{path}[{index}]", old, new)
    elif type(a) is not type(b) or a != b:
        yield path, a, b


def _short(value: Any, most: int = 80) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def compare_signatures(a: bytes, b: bytes) -> Iterator[Difference]:
    """Certificate and signature of two signed images whose sections differ."""
    try:
        old, new = _Signed.read(a), _Signed.read(b)
    except (InputError, ValueError) as error:
        what = f"the bytes differ, and one cannot be read: {error}"
        yield Difference("signature", what, CERTIFICATE_PCRS)
        return
    if old.sha256 != new.sha256:
        what = f"certificate: {old.subject} sha256:{old.sha256} → {new.subject} sha256:{new.sha256}"
        yield Difference(
            "signature", what, CERTIFICATE_PCRS, {"field": "certificate", "a": old.sha256, "b": new.sha256}
        )
    elif old.entry.certificate != new.entry.certificate:
        yield Difference("signature", "other text around the same certificate", detail={"field": "certificate"})
    if old.entry.sign1 != new.entry.sign1:
        yield Difference("signature", "the signatures differ", detail={"field": "signature"})
    elif old.entry == new.entry:
        yield Difference("signature", "the same certificate and signature in other bytes")


@dataclass(frozen=True, slots=True)
class _Signed:
    """What a signature section says: its entry, whose certificate, and the SHA-256 of that as hex."""

    entry: SignatureEntry
    subject: str
    sha256: str

    @classmethod
    def read(cls, section: bytes) -> _Signed:
        entry = parse_section(section)
        certificate = load_certificate(entry.certificate)
        subject = printable(certificate.subject.rfc4514_string().encode("utf-8", "replace"))
        return cls(entry, subject, certificate.fingerprint(SHA256()).hex())


def kernel_version(data: bytes) -> str | None:
    """The version that the first part of a kernel names, if it does.

    A bzImage says it in its set-up code (Linux Documentation/arch/x86/boot.rst, kernel_version), an uncompressed image
    in its banner.
    """
    if data[0x202:0x206] == b"HdrS":
        start = int.from_bytes(data[0x20E:0x210], "little") + 0x200
        text = data[start : start + 256].split(b"\0", 1)[0]
        return printable(text.split(b" ", 1)[0]) or None
    banner = re.search(rb"Linux version ([!-~]{1,100}) ", data)
    return printable(banner[1]) if banner else None
