from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.errors import ProtocolError
from alcove.proxy import dns


def query(name: str, kind: int = dns.A, flags: int = 0x0100, count: int = 1) -> bytes:
    """A query as resolvers send it."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return struct.pack(">6H", 0x1234, flags, count, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)


def test_a_query_is_answered_with_an_address() -> None:
    """Its number, its question, recursion as asked, and an A record whose name points to the question."""
    asked = dns.parse_query(query("KMS.example.org"))
    assert (asked.name, asked.type) == ("KMS.example.org", dns.A)
    answer = dns.answer(asked, dns.NO_ERROR, bytes([127, 64, 0, 1]))
    assert answer[:12] == struct.pack(">6H", 0x1234, 0x8180, 1, 1, 0, 0)
    assert answer[12 : 12 + len(asked.question)] == query("KMS.example.org")[12:]
    assert answer.endswith(struct.pack(">3HIH", 0xC00C, 1, 1, 60, 4) + bytes([127, 64, 0, 1]))


def test_other_answers_have_no_address() -> None:
    """No such name; a name without an address of the kind asked for; a kind of query that is not done."""
    asked = dns.parse_query(query("a.org", kind=28))
    assert dns.answer(asked, dns.NO_SUCH_NAME)[:12] == struct.pack(">6H", 0x1234, 0x8183, 1, 0, 0, 0)
    assert dns.answer(asked, dns.NO_ERROR)[:12] == struct.pack(">6H", 0x1234, 0x8180, 1, 0, 0, 0)
    status = dns.parse_query(query("a.org", flags=0x1000))
    assert dns.answer(status, dns.NO_ERROR, bytes(4))[2:8] == struct.pack(">3H", 0x9084, 1, 0)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 12, query("a.org")[:-1], query("a.org", flags=0x8000), query("a.org", count=2), query("a" * 64),
     b"\0" * 4 + b"\0\1" + b"\0" * 6 + b"\xc0\x0c\0\1\0\1", query("a.org")[:-1] + b"\2", b"\0" * 600],
)  # fmt: skip
def test_what_is_no_query_is_refused(data: bytes) -> None:
    """Pointers, answers, several questions, and what ends early."""
    with pytest.raises(ProtocolError):
        dns.parse_query(data)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_query_or_a_protocol_error(data: bytes) -> None:
    """Any bytes → a query, or ProtocolError, nothing else."""
    with contextlib.suppress(ProtocolError):
        dns.parse_query(b"\0\0\1\0\0\1\0\0\0\0\0\0" + data)
