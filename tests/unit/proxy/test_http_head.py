from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.errors import ProtocolError
from alcove.proxy.http_head import MAX_HEAD, connect_request, parse_request, parse_response, response
from alcove.proxy.rules import destination


@pytest.mark.parametrize("where", [destination("kms.example.org", 443), destination("2001:db8::1", 8443)])
def test_a_tunnel_is_asked_for_and_understood(where: object) -> None:
    """What one end writes the other reads, IPv6 included."""
    request = parse_request(connect_request(where))  # type: ignore[arg-type]
    assert (request.where, request.head) == (where, b"")


def test_a_plain_request_is_rewritten_for_its_server() -> None:
    """The path alone, its own Host, nothing that was for the proxy, and one request a connection."""
    head = (
        b"POST http://Example.org:8080/a?b=c HTTP/1.1\r\nHost: another.org\r\nAccept: */*\r\n"
        b"Proxy-Connection: close\r\nProxy-Authorization: Basic eA==\r\nContent-Length: 3\r\n"
        b"Connection: keep-alive\r\n\r\n"
    )
    request = parse_request(head)
    assert request.where == destination("example.org", 8080)
    assert request.head == (
        b"POST /a?b=c HTTP/1.1\r\nHost: Example.org:8080\r\n"
        b"Accept: */*\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
    )
    assert parse_request(b"GET http://a.org HTTP/1.1\r\n\r\n").head.startswith(b"GET / HTTP/1.1\r\nHost: a.org\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"", b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"CONNECT a.org HTTP/1.1\r\n\r\n",
        b"CONNECT a.org:0 HTTP/1.1\r\n\r\n", b"CONNECT a.org:443 HTTP/2\r\n\r\n",
        b"CONNECT u@a.org:443 HTTP/1.1\r\n\r\n",
        b"CONNECT 127.1:443 HTTP/1.1\r\n\r\n", b"CONNECT a.org:99999 HTTP/1.1\r\n\r\n",
        b"GET ftp://a.org/ HTTP/1.1\r\n\r\n",
        b"GET https://a.org/ HTTP/1.1\r\n\r\n", b"GET http://u:p@a.org/ HTTP/1.1\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\n\r\n",
        b"GET http://a.org:x/ HTTP/1.1\r\n\r\n", b"GET http://a.org/ HTTP/1.1\r\nno header\r\n\r\n",
        b"GET http://a.org/ HTTP/1.1\r\nA: b\nC: d\r\n\r\n", b"GET http://a.org/\x00 HTTP/1.1\r\n\r\n",
        b"GET http://a.org/ HTTP/1.1\r\nA : b\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\r\n\r\n",
        b"CONNECT [::1%25lo]:443 HTTP/1.1\r\n\r\n", b"CONNECT a.org:443 HTTP/1.1\r\n" + b"x" * MAX_HEAD + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(head: bytes) -> None:
    """Nothing is guessed: a head that another reader could take otherwise is none."""
    with pytest.raises(ProtocolError):
        parse_request(head)


def test_an_answer_says_what_was_reached_or_why_not() -> None:
    """200 with the address; an error with a line for people."""
    answer = parse_response(response(200, address="192.0.2.1"))
    assert (answer.status, answer.address) == (200, ipaddress.ip_address("192.0.2.1"))
    head, body = response(403, "refused: because").split(b"\r\n\r\n")
    assert parse_response(head + b"\r\n\r\n").status == 403
    assert body == b"refused: because\n"
    assert b"Content-Length: 17\r\n" in head


@given(st.binary(max_size=200), st.sampled_from([b"", b"CONNECT ", b"GET http://", b"HTTP/1.1 "]))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes, begin: bytes) -> None:
    """Any bytes → a message, or ProtocolError, nothing else."""
    for parse in (parse_request, parse_response):
        with contextlib.suppress(ProtocolError):
            parse(begin + data + b"\r\n\r\n")
