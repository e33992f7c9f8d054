"""Documents whose chain, time or content is particular."""

from __future__ import annotations

from datetime import datetime, timedelta

from vectors.attestation.cases import Maker, add, invalid, unwelcome, verified
from vectors.attestation.items import integer, moment, octets, sequence, tlv
from vectors.attestation.world import (
    AT,
    BEGIN,
    END,
    INSTANCE,
    LEAF,
    MODULE_ID,
    ORDER,
    PCRS,
    REGIONAL,
    ROOT,
    STRANGER,
    ZONAL,
    authority,
    chained,
    document,
    fingerprint,
    leaf,
    name,
    pcrs,
    point,
    root,
    signature,
    spki,
    validity,
)
from vectors.collection import Collection, Fields

vector = Collection("document")

ABOVE = (root(), authority(REGIONAL), authority(ZONAL), authority(INSTANCE))
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
ZERO = bytes(48)
DEBUG = PCRS | {0: ZERO, 1: ZERO, 2: ZERO, 8: ZERO}


def under(order: tuple[int, ...]) -> Maker:
    """The leaf under some of the authorities, in that order."""
    return lambda: chained(*(ABOVE[index] for index in order), own=leaf(INSTANCE))


def replaced(index: int, entry: bytes) -> Maker:
    """The whole chain with another authority at a place."""
    entries = [*ABOVE[:index], entry, *ABOVE[index + 1 :]]
    return lambda: chained(*entries, own=leaf(INSTANCE))


def short(own: bytes) -> Maker:
    """A leaf under the root."""
    return lambda: chained(root(), own=own)


def twin_of_the_root() -> bytes:
    """The root with the other s in its signature: it verifies, and is another certificate."""
    tbs = root()[4:]
    body = tbs[: 4 + int.from_bytes(tbs[2:4])]
    der = signature(ROOT, body)
    r_size = der[3]
    r, s = int.from_bytes(der[4 : 4 + r_size]), int.from_bytes(der[6 + r_size :])
    return root(proof=tlv(3, b"\0" + sequence(integer(r), integer(ORDER - s))))


def _chains() -> None:
    child = leaf(issuer=name(f"{MODULE_ID}.eu-central-1.aws"), signer=LEAF)
    table: dict[str, tuple[str, Fields, Maker]] = {
        "of_two": ("The root issued the leaf.", verified(), short(leaf())),
        "of_five": ("As the platform makes them.", verified(), under((0, 1, 2, 3))),
        "reversed": ("The instance comes first.", invalid(7), under((3, 2, 1, 0))),
        "without_root": ("The root is missing.", invalid(7), under((1, 2, 3))),
        "without_regional": ("The regional authority is missing.", invalid(8), under((0, 2, 3))),
        "without_instance": ("The instance is missing.", invalid(8), under((0, 1, 2))),
        "root_alone": ("The root alone, which did not issue the leaf.", invalid(8), under((0,))),
        "swapped": ("Regional and zonal authority are swapped.", invalid(8), under((0, 2, 1, 3))),
        "instance_twice": ("The instance comes twice.", invalid(8), under((0, 1, 2, 3, 3))),
        "of_eleven": ("More certificates than any platform issues.", invalid(8), under((0,) * 6 + (0, 1, 2, 3))),
        "under_another_root": ("Another root is trusted.", invalid(7, root="11" * 32), under((0, 1, 2, 3))),
        "twin_of_the_root": (
            "The root with the other of its two signatures.",
            invalid(7),
            replaced(0, twin_of_the_root()),
        ),
        "root_of_a_stranger": (
            "A root of the same name with another key.",
            invalid(7),
            replaced(0, root(key=spki(point(STRANGER)))),
        ),
        "root_corrupt": ("The root's last byte is missing.", invalid(6), replaced(0, ABOVE[0][:-1])),
        "zonal_corrupt": ("A byte follows the zonal certificate.", invalid(6), replaced(2, ABOVE[2] + b"\0")),
        "zonal_bit": (
            "A bit of the zonal authority's signature.",
            invalid(8),
            replaced(2, ABOVE[2][:-1] + bytes([ABOVE[2][-1] ^ 1])),
        ),
        "path_too_long": (
            "The zonal authority allows none below it.",
            invalid(10),
            replaced(2, authority(ZONAL, path=0)),
        ),
        "other_issuer": ("The leaf names another issuer.", invalid(8), short(leaf(issuer=name("x")))),
        "issuer_in_other_type": (
            "The issuer's name in other string types.",
            invalid(8),
            short(leaf(issuer=name("aws.nitro-enclaves").replace(b"\x13\x02US", b"\x0c\x02US"))),
        ),
        "signed_by_a_stranger": ("The right names, another key's signature.", invalid(8), short(leaf(signer=STRANGER))),
        "signed_by_itself": ("The leaf signed itself.", invalid(8), short(leaf(signer=LEAF))),
        "leaf_issues_a_leaf": ("An enclave as an authority.", invalid(10), lambda: chained(root(), leaf(), own=child)),
    }
    for title, (comment, fields, make) in table.items():
        add(vector, f"chain_{title}", comment, fields, make)
    long = (ABOVE[0],) * 5
    add(vector, "chain_root_repeated", "The root comes five times: it signed itself.", verified(),
        lambda: chained(*long, own=leaf()))  # fmt: skip
    add(vector, "chain_root_not_pinned", "A root that is no certificate, and not trusted.",
        invalid(6, root="11" * 32), replaced(0, b"\x30\0"))  # fmt: skip


def _times() -> None:
    begins: dict[str, tuple[str, Fields]] = {
        "begin": ("Exactly when the leaf's validity begins.", verified(at=BEGIN)),
        "before": ("A second before the leaf's validity.", invalid(9, at=BEGIN - SECOND)),
        "end": ("Exactly when the leaf's validity ends.", verified(at=END)),
        "after": ("A second after the leaf's validity.", invalid(9, at=END + SECOND)),
        "years_later": ("Years later.", invalid(9, at=END + timedelta(days=2000))),
        "own": ("At its own time.", verified(at=None)),
        "age_largest": ("As old as allowed.", verified(at=AT + HOUR, max_age=3600)),
        "too_old": ("A second older than allowed.", invalid(12, at=AT + HOUR + SECOND, max_age=3600)),
    }
    for title, (comment, fields) in begins.items():
        add(vector, f"time_{title}", comment, fields, document)
    made: dict[str, tuple[str, Fields, datetime]] = {
        "made_at_begin": ("Made when the leaf's validity begins.", verified(), BEGIN),
        "made_before": ("Made before the leaf's validity.", invalid(12), BEGIN - SECOND),
        "made_at_end": ("Made when the leaf's validity ends.", verified(at=None), END),
        "made_after": ("Made after the leaf's validity.", invalid(12), END + SECOND),
        "skew": ("A minute ahead of the clock.", verified(skew=60), AT + 60 * SECOND),
        "future": ("More than a minute ahead of the clock.", invalid(12, skew=60), AT + 61 * SECOND),
    }
    for title, (comment, fields, when) in made.items():
        milliseconds = int(when.timestamp() * 1000)
        add(vector, f"time_{title}", comment, fields, lambda made=milliseconds: document(timestamp=moment(made)))
    past = validity(AT - 9 * HOUR, AT - HOUR)
    for index, own in ((1, REGIONAL), (2, ZONAL), (3, INSTANCE)):
        comment = f"The authority at place {index} of the chain expired."
        add(
            vector,
            f"time_authority_{index}_expired",
            comment,
            invalid(9),
            replaced(index, authority(own, validity=past)),
        )
    old = root(validity=past)
    add(vector, "time_root_expired", "The root expired.", invalid(9, root=fingerprint(old)), replaced(0, old))


def _content() -> None:
    pcr = f"PCR0 {PCRS[0].hex()}"
    nonce = octets(b"challenge")
    carried = lambda: document(nonce=nonce)  # noqa: E731 - one of many makers
    debug = lambda: document(pcrs=pcrs(DEBUG))  # noqa: E731
    table: dict[str, tuple[str, Fields, Maker]] = {
        "nonce": ("The challenge came back.", verified(nonce=b"challenge".hex()), carried),
        "nonce_wrong": ("Another challenge came back.", unwelcome(nonce=b"challengf".hex()), carried),
        "nonce_longer": ("The challenge and more.", unwelcome(nonce=b"challeng".hex()), carried),
        "nonce_null": ("No challenge came back.", unwelcome(nonce=b"challenge".hex()), document),
        "nonce_absent": ("No nonce at all.", unwelcome(nonce=b"challenge".hex()), lambda: document(nonce=None)),
        "nonce_empty": ("An empty nonce.", unwelcome(nonce=b"challenge".hex()), lambda: document(nonce=octets(b""))),
        "pcr0": ("PCR0 is the expected one.", verified(require=[pcr]), document),
        "pcr0_wrong": ("PCR0 is another.", unwelcome(require=["PCR0 " + "ab" * 48]), document),
        "pcr_missing": ("PCR16 is expected and not there.", unwelcome(require=["PCR16 " + "ab" * 48]), document),
        "pcr_by_position": (
            "The second register is PCR5 and not PCR1.",
            unwelcome(require=[f"PCR1 {PCRS[1].hex()}"]),
            lambda: document(pcrs=pcrs({0: PCRS[0], 5: PCRS[1]})),
        ),
        "second_pcr_wrong": (
            "PCR0 is the expected one, PCR2 another.",
            unwelcome(require=[pcr, "PCR2 " + "ab" * 48]),
            document,
        ),
        "debug": (
            "Zero registers, though debug mode is not accepted.",
            unwelcome(require=[f"PCR3 {ZERO.hex()}"]),
            debug,
        ),
        "debug_accepted": (
            "Zero registers, accepted.",
            verified(require=[f"PCR3 {ZERO.hex()}"], debug="accepted"),
            debug,
        ),
        "debug_expected": ("Zero is expected, which proves nothing.", unwelcome(require=[f"PCR0 {ZERO.hex()}"]), debug),
        "debug_partly": (
            "PCR1 alone is zero.",
            unwelcome(require=[pcr]),
            lambda: document(pcrs=pcrs(PCRS | {1: ZERO})),
        ),
        "unsigned_expected": (
            "PCR8 is expected to be zero, which proves nothing.",
            unwelcome(require=[f"PCR8 {ZERO.hex()}"]),
            lambda: document(pcrs=pcrs(PCRS | {8: ZERO})),
        ),
    }
    for title, (comment, fields, make) in table.items():
        add(vector, f"content_{title}", comment, fields, make)


_chains()
_times()
_content()
