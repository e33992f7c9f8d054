"""The provisioning protocol on the wire: exact, bounded, and the same however it is cut."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.apps.acm import rpc_server
from alcove.apps.acm.rpc import MAX_BODY, pack_reply, pack_request, reply_reader, request_reader
from alcove.apps.acm.rpc_server import RpcServer, between_requests
from alcove.apps.acm.server import listen
from alcove.errors import ProtocolError

DESCRIBE = b'POST /rpc/v1 HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n"DescribeDevice"'
items = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def test_the_bytes_are_aws_s() -> None:
    """acm.md §4: the request line, the two headers, and a reply without HTTP's version."""
    assert pack_request("DescribeDevice") == DESCRIBE
    reply = b'200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"Ok":"None"}'
    assert pack_reply({"Ok": "None"}) == reply
    assert request_reader().receive(DESCRIBE) == "DescribeDevice"


@given(items, st.data(), st.booleans())
def test_a_message_does_not_depend_on_how_it_arrives(item: Any, data: st.DataObject, request: bool) -> None:
    """Any JSON, cut anywhere."""
    packed = (pack_request if request else pack_reply)(item)
    reader = (request_reader if request else reply_reader)()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(packed)), max_size=6)))
    results = [reader.receive(packed[start:end]) for start, end in zip([0, *cuts], [*cuts, len(packed)], strict=True)]
    whole = [result for result in results if result is not ...]
    assert whole[:1] == [item]


@pytest.mark.parametrize(
    "data",
    [
        b"GET /rpc/v1 HTTP/1.1\r\n\r\n",
        DESCRIBE.replace(b"/rpc/v1", b"/rpc/v2"),
        DESCRIBE.replace(b"Content-Type", b"content-type"),
        DESCRIBE.replace(b": 16", b":16"),
        DESCRIBE.replace(b"\r\nContent-Length", b"\r\nHost: x\r\nContent-Length"),
        DESCRIBE.replace(b"16", b"-1"),
        DESCRIBE.replace(b"16", str(MAX_BODY + 1).encode()),
        DESCRIBE + b" ",
        DESCRIBE.replace(b'"Desc', b"'Desc"),
        b"x" * 2000,
        b"POST /rpc/v1 HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 65536\r\n\r\n" + b"[" * 65536,
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    """Other headers, other spacing, other lengths, no JSON, or too deep: a ProtocolError."""
    with pytest.raises(ProtocolError):
        request_reader().receive(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Nothing but the protocol's error comes out."""
    reader = request_reader()
    try:
        for at in range(len(data)):
            reader.receive(data[at : at + 1])
    except ProtocolError:
        return


class Echo:
    """A service that answers with the request, or breaks."""

    def handle(self, request: Any) -> dict[str, Any]:
        """See `Provisioner`."""
        if request == "break":
            raise RuntimeError("a secret")
        return {"Ok": request}


async def _with_server(path: Path, log: list[str], body: Callable[[Callable[[bytes], Any]], Any]) -> None:
    server = RpcServer(Echo(), log.append)  # type: ignore[arg-type]
    accepting = await server.start(listen(f"unix:path={path}"))

    def ask(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(30)
            stream.connect(str(path))
            stream.sendall(data)
            received = b""
            while chunk := stream.recv(1 << 16):
                received += chunk
        return received

    await asyncio.to_thread(body, ask)
    accepting.close()


def test_one_request_a_connection_is_answered(tmp_path: Path) -> None:
    """A reply and the end; a malformed request gets the end alone; a fault of ours is InternalError without words."""
    log: list[str] = []

    def body(ask: Callable[[bytes], bytes]) -> None:
        assert reply_reader().receive(ask(DESCRIBE)) == {"Ok": "DescribeDevice"}
        assert ask(b"GET / HTTP/1.1\r\n\r\n") == b""
        assert reply_reader().receive(ask(pack_request("break"))) == {"Err": "InternalError"}
        assert reply_reader().receive(ask(pack_request([1]))) == {"Ok": [1]}

    asyncio.run(_with_server(tmp_path / "s", log, body))
    assert [line.partition(":")[0] for line in log] == [
        "a provisioning request was refused",
        "a provisioning request failed",
    ]
    assert "secret" not in json.dumps(log)


def test_a_client_that_says_nothing_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream's time is limited."""
    monkeypatch.setattr(rpc_server, "STREAM_SECONDS", 0.2)
    asyncio.run(_with_server(tmp_path / "s", [], lambda ask: ask(DESCRIBE[:-1])))


def test_a_change_is_made_in_the_loop_s_thread() -> None:
    """And what it raises comes back to the thread that waits."""

    async def run() -> None:
        import threading  # noqa: PLC0415

        atomically = between_requests(asyncio.get_running_loop())
        ours = threading.get_ident()
        assert await asyncio.to_thread(atomically, threading.get_ident) == ours
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(atomically, lambda: 1 // 0)

    asyncio.run(run())
