from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.sdk.servers.request import MAX_BODY, MAX_HEAD, BadRequestError, Request, RequestReader, Response

GOOD = b"POST / HTTP/1.1\r\nHost: h\r\nX-Amz-Target: T\r\nContent-Length: 4\r\n\r\nbody"


def read(*chunks: bytes) -> list[Request]:
    reader, found = RequestReader(), []
    for chunk in chunks:
        reader.receive(chunk)
        while (request := reader.next_request()) is not None:
            found.append(request)
    return found


@given(st.lists(st.integers(0, 2 * len(GOOD)), max_size=6))
def test_chunking_changes_nothing(cuts: list[int]) -> None:
    """Two requests on one connection are the same two, however they come."""
    edges = [0, *sorted(cuts), 2 * len(GOOD)]
    found = read(*((2 * GOOD)[a:b] for a, b in pairwise(edges)))
    assert [(r.method, r.target, r.body, r.headers["x-amz-target"]) for r in found] == [("POST", "/", b"body", "T")] * 2


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    """Nothing else is raised, whatever comes."""
    try:
        read(data)
    except BadRequestError:
        return


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://x/ HTTP/1.1",
        b"GET / HTTP/2.0",
        b"GET /",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
        b"POST / HTTP/1.1\r\nContent-Length: +1",
        b"POST / HTTP/1.1\r\nContent-Length: " + str(MAX_BODY + 1).encode(),
        b"POST / HTTP/1.1\r\nHost : h",
        b"POST / HTTP/1.1\r\nA: b\r\n folded",
        b"POST / HTTP/1.1\r\nA: \x01",
        b"POST / HTTP/1.1\r\nno colon",
    ],
)
def test_what_two_readers_could_understand_differently_is_refused(head: bytes) -> None:
    """Repeated and folded headers, other framings, other versions."""
    with pytest.raises(BadRequestError):
        read(head + b"\r\n\r\n")


def test_a_head_without_an_end_is_refused() -> None:
    """A peer cannot fill the memory."""
    with pytest.raises(BadRequestError):
        read(b"GET / HTTP/1.1\r\nA: " + b"x" * MAX_HEAD)


def test_the_connection_is_kept_when_the_peer_wants_it() -> None:
    """HTTP/1.1 keeps it, unless it is told; HTTP/1.0 does not."""
    plain, told, old = (
        read(head + b"\r\n\r\n")[0]
        for head in (b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nConnection: close", b"GET / HTTP/1.0")
    )
    assert (plain.keep_alive, told.keep_alive, old.keep_alive) == (True, False, False)
    assert b"connection: close" in Response(200, b"", "text/plain").encode(keep_alive=False)
