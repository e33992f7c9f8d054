"""Documents whose payload is particular: CBOR, keys, types, limits. All are signed."""

from __future__ import annotations

from vectors.attestation.cases import add, invalid, verified
from vectors.attestation.items import BREAK, NULL, array, head, mapping, moment, number, octets, text
from vectors.attestation.world import AT, PCRS, document, envelope, fields, leaf, payload, pcrs, root
from vectors.collection import Collection

vector = Collection("document")

REQUIRED = ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
OPTIONAL = ("public_key", "user_data", "nonce")
MILLISECONDS = int(AT.timestamp() * 1000)
ROOT = octets(root())


def _accepted() -> None:
    for name in OPTIONAL:
        add(vector, f"{name}_absent", f"No {name}.", verified(), lambda name=name: document(**{name: None}))
        add(vector, f"{name}_null", f"{name} is null.", verified(), lambda name=name: document(**{name: NULL}))
        add(
            vector,
            f"{name}_largest",
            f"{name} of 1024 bytes.",
            verified(),
            lambda name=name: document(**{name: octets(bytes(1024))}),
        )
    for name in ("user_data", "nonce"):
        add(vector, f"{name}_empty", f"{name} is empty.", verified(), lambda name=name: document(**{name: octets(b"")}))
        add(
            vector,
            f"{name}_of_512_strict",
            f"{name} of 512 bytes, the smaller limit.",
            verified(limit=512),
            lambda name=name: document(**{name: octets(bytes(512))}),
        )
        add(
            vector,
            f"{name}_of_513_strict",
            f"{name} of 513 bytes, one above the smaller limit.",
            invalid(5, limit=512),
            lambda name=name: document(**{name: octets(bytes(513))}),
        )
    unknown = (text("x"), array([number(1), mapping([])]))
    endless = {"pcrs": pcrs(PCRS, endless=True), "cabundle": array([ROOT], endless=True)}
    registers = {index: bytes([index + 1]) * 48 for index in range(32)}
    table = {
        "reordered": ("The keys in the other order.", lambda: envelope(mapping(fields()[::-1]))),
        "endless_map": ("The map has an indefinite length.", lambda: envelope(mapping(fields(), endless=True))),
        "endless_inside": ("Registers and chain have indefinite lengths.", lambda: document(**endless)),
        "unknown_key": (
            "A key that nobody knows is signed and skipped.",
            lambda: envelope(mapping([*fields(), unknown])),
        ),
        "timestamp_short": ("A time in the shortest form.", lambda: document(timestamp=number(MILLISECONDS))),
        "pcrs_sparse": ("PCR0 and PCR31 alone.", lambda: document(pcrs=pcrs({0: PCRS[0], 31: PCRS[1]}))),
        "pcrs_unsorted": (
            "Registers in falling order.",
            lambda: document(pcrs=pcrs(dict(sorted(PCRS.items(), reverse=True)))),
        ),
        "pcrs_thirty_two": ("All registers.", lambda: document(pcrs=pcrs(registers))),
        "pcrs_of_other_sizes": (
            "Digests of 32 and 64 bytes.",
            lambda: document(pcrs=pcrs({0: b"\1" * 32, 1: b"\2" * 64})),
        ),
        "module_id_other": ("Another form of name.", lambda: document(module_id=text("é"))),
        "strings_in_chunks": (
            "A byte string of indefinite length.",
            lambda: document(user_data=b"\x5f\x41a\x41b" + BREAK),
        ),
    }
    for name, (comment, make) in table.items():
        add(vector, name, comment, verified(), make)


def _lexical() -> None:
    good = payload()
    table = {
        "array": b"\x80",
        "number": b"\0",
        "break": BREAK,
        "followed": good + b"\0",
        "cut": good[:-1],
        "count_too_high": head(5, 10) + good[1:],
        "count_too_low": head(5, 8) + good[1:],
        "count_of_32_bits": b"\xba\xff\xff\xff\xff" + good[1:],
        "count_of_64_bits": b"\xbb" + b"\xff" * 8 + good[1:],
        "break_in_a_definite_map": good[:-1] + BREAK,
        "endless_without_break": b"\xbf" + good[1:],
        "endless_followed": b"\xbf" + good[1:] + BREAK + b"\0",
        "endless_odd": b"\xbf" + good[1:] + text("x") + BREAK,
        "reserved_28": b"\xbc" + good[1:],
        "reserved_29": b"\xbd" + good[1:],
        "reserved_30": b"\xbe" + good[1:],
        "tagged": b"\xc0" + good,
        "key_number": mapping([*fields(), (number(1), NULL)]),
        "key_bytes": mapping([*fields(), (octets(b"x"), NULL)]),
        "key_null": mapping([*fields(), (NULL, NULL)]),
        "key_array": mapping([*fields(), (array([]), NULL)]),
        "key_not_utf8": mapping([*fields(), (b"\x61\xff", NULL)]),
        "length_beyond": payload(user_data=b"\x5b" + b"\xff" * 8),
        "head_cut": good[:-1] + b"\x58",
        "chunk_of_text": payload(user_data=b"\x5f\x61a" + BREAK),
        "chunk_endless": payload(user_data=b"\x5f\x5f\x41a" + BREAK * 2),
        "number_endless": payload(timestamp=b"\x1f"),
        "simple_in_two_bytes": payload(user_data=b"\xf8\x18"),
        "nested_too_deep": mapping([*fields(), (text("x"), b"\x81" * 40 + b"\0")]),
        "nested_a_thousandfold": mapping([*fields(), (text("x"), b"\x81" * 1000 + b"\0")]),
        "pcrs_count_beyond": payload(pcrs=b"\xba\xff\xff\xff\xff"),
        "cabundle_count_beyond": payload(cabundle=b"\x9a\xff\xff\xff\xff"),
    }
    for name, content in table.items():
        comment = f"The payload: {name.replace('_', ' ')}."
        add(vector, f"payload_{name}", comment, invalid(4), lambda content=content: envelope(content))
    for name in (*REQUIRED, *OPTIONAL):
        pair = dict(zip((*REQUIRED, *OPTIONAL), fields(), strict=True))[name]
        add(
            vector,
            f"payload_{name}_twice",
            f"{name} occurs twice.",
            invalid(4),
            lambda pair=pair: envelope(mapping([*fields(), pair])),
        )


WRONG = {
    "module_id": {"bytes": octets(b"x"), "empty": text(""), "number": number(1)},
    "digest": {"sha256": text("SHA256"), "lower_case": text("sha384"), "bytes": octets(b"SHA384"), "empty": text("")},
    "timestamp": {
        "zero": moment(0),
        "negative": number(-1),
        "text": text("1"),
        "true": b"\xf5",
        "float": b"\xfb" + bytes(8),
        "largest": b"\x1b" + b"\xff" * 8,
        "tagged": b"\xc1" + moment(MILLISECONDS),
    },
    "pcrs": {
        "empty": mapping([]),
        "array": array([octets(bytes(48))]),
        "index_32": pcrs({0: PCRS[0], 32: PCRS[0]}),
        "index_negative": pcrs({0: PCRS[0], -1: PCRS[0]}),
        "index_text": mapping([(text("0"), octets(PCRS[0]))]),
        "thirty_three": pcrs({index: bytes(32) for index in range(33)}),
        "of_47": pcrs({0: bytes(47)}),
        "of_49": pcrs({0: bytes(49)}),
        "of_20": pcrs({0: bytes(20)}),
        "of_none": pcrs({0: b""}),
        "text": mapping([(number(0), text("x" * 48))]),
        "null": mapping([(number(0), NULL)]),
    },
    "certificate": {
        "empty": octets(b""),
        "of_1025": octets(leaf() + bytes(1025 - len(leaf()))),
        "text": text("x"),
        "array": array([octets(leaf())]),
    },
    "cabundle": {
        "empty": array([]),
        "bytes": ROOT,
        "entry_empty": array([ROOT, octets(b"")]),
        "entry_text": array([ROOT, text("x")]),
        "entry_of_1025": array([ROOT, octets(bytes(1025))]),
        "entry_null": array([ROOT, NULL]),
        "of_thirty_three": array([ROOT, *[octets(b"x")] * 32]),
        "map": mapping([(number(0), ROOT)]),
    },
    "public_key": {
        "empty": octets(b""),
        "of_1025": octets(bytes(1025)),
        "text": text("x"),
        "false": b"\xf4",
        "undefined": b"\xf7",
    },
    "user_data": {"of_1025": octets(bytes(1025)), "text": text("x"), "number": number(0), "array": array([])},
    "nonce": {"of_1025": octets(bytes(1025)), "text": text("x"), "true": b"\xf5"},
}


def _fields() -> None:
    for name in REQUIRED:
        add(vector, f"{name}_absent", f"No {name}.", invalid(5), lambda name=name: document(**{name: None}))
        add(vector, f"{name}_null", f"{name} is null.", invalid(5), lambda name=name: document(**{name: NULL}))
    for name, values in WRONG.items():
        for what, value in values.items():
            comment = f"{name}: {what.replace('_', ' ')}."
            add(vector, f"{name}_{what}", comment, invalid(5), lambda name=name, value=value: document(**{name: value}))
    add(
        vector,
        "pcrs_index_twice",
        "PCR0 occurs twice.",
        invalid(4),
        lambda: document(pcrs=mapping([(number(0), octets(PCRS[0])), (number(0), octets(PCRS[1]))])),
    )
    add(
        vector,
        "pcrs_index_twice_in_two_forms",
        "PCR0 occurs twice, once in a longer form.",
        invalid(4),
        lambda: document(pcrs=mapping([(number(0), octets(PCRS[0])), (b"\x18\0", octets(PCRS[1]))])),
    )


_accepted()
_lexical()
_fields()
