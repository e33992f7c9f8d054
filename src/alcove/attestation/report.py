"""What a document says, for people and for programs.

Core: a document, and the registers of an image to compare it with, in; lines or a JSON object out. Nothing here
verifies anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from alcove.attestation.certificate import Certificate, parse_certificate
from alcove.attestation.content import explain
from alcove.attestation.document import AttestationDocument
from alcove.attestation.policy import DEBUG_PCRS, IMAGE_PCRS
from alcove.attestation.verify import Root

Registers = Mapping[int, bytes]  # of an image: PCR0, PCR1, PCR2, and PCR8 when it is signed

PCR_MEANING: Final = {  # eif.md §2
    0: "the image",
    1: "kernel, command line and boot ramdisk",
    2: "the application",
    3: "the parent's IAM role",
    4: "the parent's instance id",
    8: "the certificate that signed the image",
}
_FIRST_OWN_PCR: Final = 16  # registers from here on are extended by the application itself
_LEVELS: Final = ("root", "regional", "zonal", "instance")
_DATE: Final = "%Y-%m-%d %H:%M:%SZ"
_COLUMN: Final = 11
_WIDTH: Final = 96  # characters of a field on one line
_ZERO: Final = bytes(48)


def describe(document: AttestationDocument, image: Registers | None = None) -> list[str]:
    """Lines for people: identity, registers with their meaning, the enclave's own fields, the chain as a tree.

    Args:
        document: The document.
        image: Registers of the image that it may be of.
    """
    lines = [
        f"enclave    {_printable(document.module_id)}",
        f"made       {document.timestamp.isoformat(timespec='milliseconds')}",
        f"mode       {'DEBUG: the registers say nothing about the image' if is_debug(document) else 'not debug'}",
    ]
    if image is not None:
        differing = [f"PCR{index}" for index, same in compare(document, image).items() if not same]
        lines.append(f"image      {'NOT this one, by ' + ', '.join(differing) if differing else 'this one'}")
    lines.append("registers")
    lines += [_pcr_line(index, value, image) for index, value in document.pcrs.items() if _is_shown(index, value)]
    zero = [index for index, value in document.pcrs.items() if not _is_shown(index, value)]
    if zero:
        lines.append(f"  zero     {_ranges(zero)}")
    lines += _field("public key", document.public_key)
    lines += _field("user data", document.user_data)
    lines += _field("nonce", document.nonce)
    return [*lines, "chain", *_tree(document)]


def compare(document: AttestationDocument, image: Registers) -> dict[int, bool]:
    """Whether PCR0, PCR1, PCR2 and PCR8 are those of an image; PCR8 of an unsigned one is zero."""
    return {index: document.pcrs.get(index) == image.get(index, _ZERO) for index in DEBUG_PCRS}


def to_json(document: AttestationDocument, image: Registers | None = None) -> dict[str, Any]:
    """The same for programs: bytes as hexadecimal, null for what is absent; ``image`` only when there is one."""
    answer: dict[str, Any] = {
        "module_id": document.module_id,
        "digest": document.digest,
        "timestamp": document.timestamp_ms,
        "time": document.timestamp.isoformat(timespec="milliseconds"),
        "debug": is_debug(document),
        "pcrs": {f"PCR{index}": value.hex() for index, value in document.pcrs.items()},
        "public_key": _hex(document.public_key),
        "user_data": _hex(document.user_data),
        "nonce": _hex(document.nonce),
        "contents": {
            name: None if value is None else dict(zip(("kind", "value"), explain(value), strict=True))
            for name, value in _own_fields(document)
        },
        "root": hashlib.sha256(document.cabundle[0]).hexdigest(),
        "chain": [_certificate_json(level, data) for level, data in _levels(document)],
    }
    if image is not None:
        same = compare(document, image)
        answer["image"] = {"matches": all(same.values())} | {f"PCR{index}": value for index, value in same.items()}
    return answer


def is_debug(document: AttestationDocument) -> bool:
    """Whether PCR0, PCR1 or PCR2 is there and zero."""
    return any(index in document.pcrs and not any(document.pcrs[index]) for index in IMAGE_PCRS)


def _is_shown(index: int, value: bytes) -> bool:
    return any(value) or index in DEBUG_PCRS


def _pcr_line(index: int, value: bytes, image: Registers | None) -> str:
    words = [value.hex() if any(value) else "zero"]
    meaning = PCR_MEANING.get(index, "the application's own" if index >= _FIRST_OWN_PCR else "")
    words += [meaning] if meaning else []
    if image is not None and index in DEBUG_PCRS:
        expected = image.get(index, _ZERO)
        words.append("matches" if value == expected else f"DIFFERS: {expected.hex() if any(expected) else 'zero'}")
    return f"  PCR{index:<6}" + "  ".join(words)


def _ranges(indexes: Sequence[int]) -> str:
    """``PCR5-7, PCR9`` for 5, 6, 7, 9."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"PCR{run[0]}" + (f"-{run[-1]}" if len(run) > 1 else "") for run in runs)


def _own_fields(document: AttestationDocument) -> tuple[tuple[str, bytes | None], ...]:
    return (
        ("public_key", document.public_key),
        ("user_data", document.user_data),
        ("nonce", document.nonce),
    )


def _field(name: str, value: bytes | None) -> list[str]:
    if value is None:
        return [f"{name:<{_COLUMN}}-"]
    kind, content = explain(value)
    if kind == "empty":
        return [f"{name:<{_COLUMN}}empty"]
    head = f"{name:<{_COLUMN}}{kind}, {len(value)} bytes"
    if len(content) <= _WIDTH:
        return [f"{head}: {content}"]
    return [f"{head}:", *(f"  {content[at : at + _WIDTH]}" for at in range(0, len(content), _WIDTH))]


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _levels(document: AttestationDocument) -> list[tuple[str, bytes]]:
    names = _LEVELS if len(document.cabundle) == len(_LEVELS) else ("root",) + ("authority",) * len(document.cabundle)
    return [*zip(names, document.cabundle, strict=False), ("enclave", document.certificate)]


def _try_parse(data: bytes) -> Certificate | None:
    try:
        return parse_certificate(data)
    except ValueError:  # a document that is only shown may hold anything
        return None


def _tree(document: AttestationDocument) -> list[str]:
    root = hashlib.sha256(document.cabundle[0]).digest()
    lines = [f"  sha256:{root.hex()}" + (" (AWS)" if root == Root.AWS.fingerprint else "")]
    for depth, (level, data) in enumerate(_levels(document), 1):
        lines.append(f"  {'  ' * depth}{level:<9} {_validity(data, document)}")
    return lines


def _validity(data: bytes, document: AttestationDocument) -> str:
    certificate = _try_parse(data)
    if certificate is None:
        return f"({len(data)} bytes that are no certificate of this kind)"
    then = certificate.not_before <= document.timestamp <= certificate.not_after
    span = f"{certificate.not_before:{_DATE}} to {certificate.not_after:{_DATE}}"
    return f"{certificate.common_name}  {span}" + ("" if then else "  NOT VALID when the document was made")


def _certificate_json(level: str, data: bytes) -> dict[str, Any]:
    certificate = _try_parse(data)
    if certificate is None:
        return {"level": level, "error": "not a certificate of this kind"}
    return {
        "level": level,
        "subject": certificate.subject_text,
        "serial": f"{certificate.serial:x}",
        "not_before": certificate.not_before.isoformat(),
        "not_after": certificate.not_after.isoformat(),
    }
