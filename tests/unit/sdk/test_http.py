from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.errors import ProtocolError
from alcove.sdk.http import MAX_BODY, MAX_HEAD, Answer, AnswerReader, encode_post

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
UNTIL_END = b"HTTP/1.0 200 OK\r\n\r\nhello"
AFTER_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN
ANSWERS = {PLAIN: 200, CHUNKED: 400, UNTIL_END: 200, AFTER_CONTINUE: 200}


def feed(data: bytes, cuts: list[int]) -> Answer | None:
    reader = AnswerReader()
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        answer = reader.receive(data[start:end])
        if answer:
            return answer
    return reader.receive(b"")


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 200)))
def test_chunking_never_changes_the_answer(data: bytes, cuts: list[int]) -> None:
    """However the stream is cut, the answer is the same, with every kind of framing."""
    assert feed(data, cuts) == Answer(ANSWERS[data], b"hello")


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_protocol_error(data: bytes) -> None:
    """Any bytes → an answer, or ProtocolError, nothing else."""
    for prefix in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        with contextlib.suppress(ProtocolError):
            feed(prefix + data + b".", [])


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-1],
        CHUNKED[:-2],
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * MAX_HEAD,
        b"",
    ],
)
def test_bad_answers_are_refused(data: bytes) -> None:
    """Cut, ambiguous, foreign or too long."""
    with pytest.raises(ProtocolError):
        feed(data, []) if data else AnswerReader().receive(b"")


def test_a_header_cannot_smuggle_another() -> None:
    """A credential with a line break is refused before anything is sent."""
    with pytest.raises(ValueError):
        encode_post({"x-amz-security-token": "a\r\nx: y"}, b"")
