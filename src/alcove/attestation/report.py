"""What a document says, for people and for programs.

Core: a document in; lines or a JSON object out. Nothing here verifies anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from alcove.attestation.certificate import Certificate, parse_certificate
from alcove.attestation.document import AttestationDocument
from alcove.attestation.policy import DEBUG_PCRS, IMAGE_PCRS

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
_SHOWN: Final = 64  # bytes of a field on one line


def describe(document: AttestationDocument) -> list[str]:
    """Lines for people: identity, registers with their meaning, the enclave's own fields, the chain as a tree."""
    lines = [
        f"enclave    {_printable(document.module_id)}",
        f"made       {document.timestamp.isoformat(timespec='milliseconds')}",
        f"mode       {'DEBUG: the registers say nothing about the image' if is_debug(document) else 'not debug'}",
        "registers",
    ]
    lines += [_pcr_line(index, value) for index, value in document.pcrs.items() if _is_shown(index, value)]
    zero = [index for index, value in document.pcrs.items() if not _is_shown(index, value)]
    if zero:
        lines.append(f"  zero     {_ranges(zero)}")
    lines += [
        f"{name:<11}{_field(value)}"
        for name, value in (
            ("public key", document.public_key),
            ("user data", document.user_data),
            ("nonce", document.nonce),
        )
    ]
    return [*lines, "chain", *_tree(document)]


def to_json(document: AttestationDocument) -> dict[str, Any]:
    """The same for programs: bytes as hexadecimal, null for what is absent."""
    return {
        "module_id": document.module_id,
        "digest": document.digest,
        "timestamp": document.timestamp_ms,
        "time": document.timestamp.isoformat(timespec="milliseconds"),
        "debug": is_debug(document),
        "pcrs": {f"PCR{index}": value.hex() for index, value in document.pcrs.items()},
        "public_key": _hex(document.public_key),
        "user_data": _hex(document.user_data),
        "nonce": _hex(document.nonce),
        "chain": [_certificate_json(level, data) for level, data in _levels(document)],
    }


def is_debug(document: AttestationDocument) -> bool:
    """Whether PCR0, PCR1 or PCR2 is there and zero."""
    return any(index in document.pcrs and not any(document.pcrs[index]) for index in IMAGE_PCRS)


def _is_shown(index: int, value: bytes) -> bool:
    return any(value) or index in DEBUG_PCRS


def _pcr_line(index: int, value: bytes) -> str:
    meaning = PCR_MEANING.get(index, "the application's own" if index >= _FIRST_OWN_PCR else "")
    digest = value.hex() if any(value) else "zero"
    return f"  PCR{index:<6}{digest}" + (f"  {meaning}" if meaning else "")


def _ranges(indexes: Sequence[int]) -> str:
    """``PCR5-7, PCR9`` for 5, 6, 7, 9."""
    runs: list[list[int]] = []
    for index in indexes:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"PCR{run[0]}" + (f"-{run[-1]}" if len(run) > 1 else "") for run in runs)


def _field(value: bytes | None) -> str:
    if value is None:
        return "-"
    if not value:
        return "empty"
    shown = value[:_SHOWN]
    rest = "" if len(shown) == len(value) else "…"
    text = shown.decode("ascii", "replace")
    content = f'"{text}{rest}"' if text.isascii() and text.isprintable() else f"{shown.hex()}{rest}"
    return f"{content} ({len(value)} bytes)"


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
    return [f"  {'  ' * depth}{level:<9} {_validity(data)}" for depth, (level, data) in enumerate(_levels(document))]


def _validity(data: bytes) -> str:
    certificate = _try_parse(data)
    if certificate is None:
        return f"({len(data)} bytes that are no certificate of this kind)"
    return f"{certificate.common_name}  {certificate.not_before:{_DATE}} to {certificate.not_after:{_DATE}}"


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
