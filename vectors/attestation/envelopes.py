"""Documents whose envelope, the COSE_Sign1, is particular."""

from __future__ import annotations

from vectors.attestation.cases import add, invalid, verified
from vectors.attestation.items import array, head, octets, text
from vectors.attestation.world import (
    ES384,
    INSTANCE,
    LEAF,
    ORDER,
    REGIONAL,
    STRANGER,
    ZONAL,
    authority,
    document,
    envelope,
    leaf,
    padding,
    payload,
    pcrs,
    root,
    signed_with,
)
from vectors.collection import Collection

vector = Collection("document")

PAYLOAD = payload()
PROOF = signed_with(LEAF, PAYLOAD)
R, S = int.from_bytes(PROOF[:48]), int.from_bytes(PROOF[48:])
LOW, HIGH = sorted((S, ORDER - S))
MAXIMUM = 16384
TAGS = {"d2": "tag 18", "d812": "tag 18 in two bytes", "d90012": "tag 18 in three bytes"}
WRONG_TAGS = {"d1": 17, "d3": 19, "d83d": 61, "d862": 98}


def whole() -> bytes:
    """As the platform makes them: five certificates and sixteen registers."""
    registers = {index: bytes(48) for index in range(16)} | {0: b"\xa0" * 48, 1: b"\xa1" * 48, 2: b"\xa2" * 48}
    authorities = (root(), authority(REGIONAL), authority(ZONAL), authority(INSTANCE))
    bundle = array([octets(entry) for entry in authorities])
    return document(pcrs=pcrs(registers), cabundle=bundle, certificate=octets(leaf(INSTANCE)))


def raw(protected: bytes, unprotected: bytes, content: bytes, proof: bytes) -> bytes:
    """An array of four encoded parts."""
    return array([protected, unprotected, content, proof])


def parts(*, protected: bytes = octets(ES384), header: bytes = b"\xa0", proof: bytes = octets(PROOF)) -> bytes:
    """The document with an encoded part replaced, signed as if it were not."""
    return raw(protected, header, octets(PAYLOAD), proof)


def numbers(r: int, s: int) -> bytes:
    """The document with such a signature."""
    return parts(proof=octets(r.to_bytes(48) + s.to_bytes(48)))


def claimed(protected: str) -> bytes:
    """A document that says so of its algorithm, and is signed over that."""
    return envelope(PAYLOAD, protected=bytes.fromhex(protected))


def _accepted() -> None:
    add(vector, "envelope_of_the_platform", "As the platform makes them.", verified(), whole)
    for tag, what in TAGS.items():
        add(vector, f"envelope_tag_{tag}", f"In {what}.", verified(), lambda tag=tag: bytes.fromhex(tag) + document())
    add(vector, "envelope_s_high", "The larger of the two s that verify.", verified(), lambda: numbers(R, HIGH))
    add(vector, "envelope_s_low", "The smaller of the two s that verify.", verified(), lambda: numbers(R, LOW))
    for name, header in (("filled", "a10126"), ("endless", "bfff"), ("with_kid", "a104416b")):
        comment = f"The unprotected header is the map {header}: nobody signs it, nobody reads it."
        add(
            vector,
            f"envelope_unprotected_{name}",
            comment,
            verified(),
            lambda header=header: parts(header=bytes.fromhex(header)),
        )
    add(
        vector,
        "envelope_endless_array",
        "An array of indefinite length.",
        verified(),
        lambda: array([octets(ES384), b"\xa0", octets(PAYLOAD), octets(PROOF)], endless=True),
    )
    add(
        vector,
        "envelope_algorithm_in_three_bytes",
        "ES384 as an integer in a longer form than needed.",
        verified(),
        lambda: claimed("a101390022"),
    )


def _structure() -> None:
    good = document()
    table = {
        "empty": ("Nothing.", 1, b""),
        "too_large": (f"{MAXIMUM + 1} bytes.", 1, good + bytes(MAXIMUM + 1 - len(good))),
        "followed": ("A byte follows.", 2, good + b"\0"),
        "cut": ("The last byte is missing.", 2, good[:-1]),
        "head_only": ("The array's head alone.", 2, b"\x84"),
        "not_an_array": ("A map.", 2, b"\xa0"),
        "of_three": ("An array of three.", 2, array([octets(ES384), b"\xa0", octets(PAYLOAD)])),
        "of_five": ("An array of five.", 2, array([octets(ES384), b"\xa0", octets(PAYLOAD), octets(PROOF), b"\xf6"])),
        "of_five_hundred": ("A count beyond the input.", 2, b"\x99\x01\xf4" + good[1:]),
        "endless_without_break": ("An array of indefinite length without its break.", 2, b"\x9f" + good[1:]),
        "tagged_twice": ("Tag 18 in tag 18.", 2, b"\xd2\xd2" + good),
        "tag_reserved": ("A tag with reserved additional information.", 2, b"\xdc" + good),
        "protected_not_bytes": (
            "The protected header is a map.",
            3,
            raw(ES384, b"\xa0", octets(PAYLOAD), octets(PROOF)),
        ),
        "protected_null": ("The protected header is null.", 3, parts(protected=b"\xf6")),
        "unprotected_array": ("The unprotected header is an array.", 3, parts(header=b"\x80")),
        "unprotected_null": ("The unprotected header is null.", 3, parts(header=b"\xf6")),
        "unprotected_cut": (
            "The unprotected header's only value is missing.",
            2,
            raw(octets(ES384), b"\xa1\x01", b"", b""),
        ),
        "unprotected_duplicate": (
            "The unprotected header names a key twice.",
            2,
            parts(header=bytes.fromhex("a201000100")),
        ),
        "payload_null": ("The payload is detached.", 3, raw(octets(ES384), b"\xa0", b"\xf6", octets(PROOF))),
        "payload_text": ("The payload is text.", 3, raw(octets(ES384), b"\xa0", text("x"), octets(PROOF))),
        "payload_empty": ("The payload is empty.", 3, envelope(b"")),
        "signature_empty": ("No signature.", 3, parts(proof=octets(b""))),
        "signature_short": ("A signature of 95 bytes.", 3, parts(proof=octets(PROOF[:-1]))),
        "signature_long": ("A signature of 97 bytes.", 3, parts(proof=octets(PROOF + b"\0"))),
        "signature_of_p256": ("A signature of 64 bytes.", 3, parts(proof=octets(bytes(64)))),
        "signature_text": ("The signature is text.", 3, parts(proof=text("x" * 96))),
    }
    for name, (comment, step, data) in table.items():
        add(vector, f"envelope_{name}", comment, invalid(step), lambda data=data: data)
    for tag, value in WRONG_TAGS.items():
        add(
            vector,
            f"envelope_tag_{value}",
            f"In tag {value}.",
            invalid(2),
            lambda tag=tag: bytes.fromhex(tag) + document(),
        )


def _algorithms() -> None:
    table = {
        "absent": "a0",
        "empty": "",
        "es256": "a10126",
        "es512": "a1013823",
        "text": "a101654553333834",
        "array": "8101",
        "twice": "a2013822013822",
        "with_more": "a201382204416b",
        "other_label": "a1023822",
        "positive": "a1011822",
        "label_text": "a161313822",
        "followed": "a101382200",
        "true": "a101f5",
        "tagged": "c1a1013822",
    }
    for name, protected in table.items():
        comment = f"The protected header holds {protected or 'nothing'}, and is signed."
        add(vector, f"algorithm_{name}", comment, invalid(3), lambda protected=protected: claimed(protected))


def _signatures() -> None:
    flipped = bytes([PROOF[0] ^ 1]) + PROOF[1:]
    table = {
        "r_zero": ("r is zero.", lambda: numbers(0, S)),
        "s_zero": ("s is zero.", lambda: numbers(R, 0)),
        "r_is_order": ("r is the order of the curve.", lambda: numbers(ORDER, S)),
        "s_is_order": ("s is the order of the curve.", lambda: numbers(R, ORDER)),
        "all_ones": ("Every bit is set.", lambda: parts(proof=octets(b"\xff" * 96))),
        "swapped": ("s comes before r.", lambda: numbers(S, R)),
        "bit": ("A bit of r is changed.", lambda: parts(proof=octets(flipped))),
        "of_a_stranger": ("Another key's.", lambda: envelope(PAYLOAD, proof=signed_with(STRANGER, PAYLOAD))),
        "of_another_payload": ("Over other user data.", lambda: envelope(payload(user_data=octets(b"x")), proof=PROOF)),
        "of_the_payload_alone": (
            "Over an empty protected header.",
            lambda: envelope(PAYLOAD, proof=signed_with(LEAF, PAYLOAD, b"")),
        ),
    }
    for name, (comment, make) in table.items():
        add(vector, f"signature_{name}", comment, invalid(11), make)


def _sizes() -> None:
    for name, size, fields in (("largest", MAXIMUM, verified()), ("one_too_many", MAXIMUM + 1, invalid(1))):
        comment = f"{size} bytes, most of them a field that nobody knows, and signed."
        add(vector, f"envelope_{name}", comment, fields, lambda size=size: _of_size(size))


def _of_size(size: int) -> bytes:
    content = head(5, 10) + PAYLOAD[1:]
    spare = size - len(envelope(content + padding(1000)))
    return envelope(content + padding(1000 + spare))


_accepted()
_structure()
_algorithms()
_signatures()
_sizes()
