"""`publish` on the parent and `ingress` in the enclave: TCP servers are reached through vsock."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import pytest
from tests.ports import free_port
from tests.unit.proxy.peers import (
    ask_tcp,
    ask_unix,
    echo,
    echo_at_end,
    enclave_socket,
    serving,
    story,
    tcp_server,
)

from alcove.errors import MachineError
from alcove.proxy import ingress, publish
from alcove.proxy.ports import Mapping


def test_a_published_port_leads_into_the_enclave(tmp_path: Path) -> None:
    """Bytes go both ways, half-close included, on 127.0.0.1 and nowhere else."""

    async def tell() -> None:
        start = partial(publish.serve, lambda: tmp_path / "e" / "v", [Mapping("", 0, 443)])
        async with enclave_socket(tmp_path / "e" / "v", echo_at_end), serving(start) as [(address, target)]:
            assert (address[0], target) == ("127.0.0.1", 443)
            data = os.urandom(1 << 20)
            answers = await asyncio.gather(*(ask_tcp(address[1], data[n:]) for n in range(20)))
            assert answers == [data[n:][::-1] for n in range(20)]

    story(tell)


def test_an_enclave_that_is_away_is_reached_again_when_it_is_back(tmp_path: Path) -> None:
    """While there is none, or nothing listens in it, a connection is closed at once; the port stays open."""
    path = tmp_path / "e" / "v"

    def find() -> Path:
        if not path.exists():
            raise MachineError("no enclave is called `web`", code="E11")
        return path

    async def tell() -> None:
        async with serving(partial(publish.serve, find, [Mapping("", 0, 443)])) as [(address, _)]:
            assert await ask_tcp(address[1], b"x") == b""
            async with enclave_socket(path, echo_at_end, port=1):
                assert await ask_tcp(address[1], b"x") == b""
            async with enclave_socket(path, echo_at_end):
                assert await ask_tcp(address[1], b"abc") == b"cba"

    story(tell)


def test_a_thousand_connections_at_once(tmp_path: Path, descriptors: None) -> None:
    """All are open together, and each gets its own bytes."""

    async def tell() -> None:
        start = partial(publish.serve, lambda: tmp_path / "v", [Mapping("", 0, 443)])
        async with enclave_socket(tmp_path / "v", echo), serving(start) as [(address, _)]:
            streams = [await asyncio.open_connection("127.0.0.1", address[1]) for _ in range(1000)]
            for number, (_, writer) in enumerate(streams):
                writer.write(b"%d\n" % number)
            lines = await asyncio.gather(*(reader.readline() for reader, _ in streams))
            assert lines == [b"%d\n" % number for number in range(1000)]
            for _, writer in streams:
                writer.close()

    story(tell, 120)


def test_callers_beyond_the_limit_wait(tmp_path: Path) -> None:
    """They are served when there is room, and those who left meanwhile do no harm."""

    async def tell() -> None:
        start = partial(publish.serve, lambda: tmp_path / "v", [Mapping("", 0, 443)], limit=1)
        async with enclave_socket(tmp_path / "v", echo), serving(start) as [(address, _)]:
            reader, first = await asyncio.open_connection("127.0.0.1", address[1])
            first.write(b"first\n")
            assert await reader.readline() == b"first\n"
            for _ in range(10):
                _, leaving = await asyncio.open_connection("127.0.0.1", address[1])
                leaving.close()
            waiting = asyncio.create_task(ask_tcp(address[1], b"second"))
            first.write(b"again\n")
            assert await reader.readline() == b"again\n"
            assert not waiting.done()
            first.close()
            assert await waiting == b"second"

    story(tell)


def test_a_fault_of_the_program_ends_one_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a handler raises, the next caller is served; the fault is logged with its trace."""
    path = tmp_path / "v"
    finds = iter([lambda: 1 / 0])

    def find() -> Path:
        for fault in finds:
            fault()
        return path

    async def tell() -> None:
        async with (
            enclave_socket(path, echo_at_end),
            serving(partial(publish.serve, find, [Mapping("", 0, 443)])) as [(address, _)],
        ):
            assert await ask_tcp(address[1], b"x") == b""
            assert await ask_tcp(address[1], b"abc") == b"cba"
        assert "ZeroDivisionError" in caplog.text

    story(tell)


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    """One line: which address, which port, and why."""

    async def tell() -> None:
        async with tcp_server() as port:
            with pytest.raises(MachineError, match=f"cannot listen on 127.0.0.1 port {port}"):
                await publish.serve(lambda: tmp_path, [Mapping("", port, 443)], asyncio.Event(), lambda _: None)

    story(tell)


def test_a_tcp_server_of_the_enclave_is_reached_by_vsock(run_directory: Path) -> None:
    """A vsock port leads to the loopback; who calls early waits; a server that has gone ends one connection only."""

    async def tell() -> None:
        port = free_port()
        async with serving(partial(ingress.serve, [Mapping("", 443, port)])):
            path = run_directory / "vsock" / "443.sock"
            early = asyncio.create_task(ask_unix(path, b"early"))
            await asyncio.sleep(0.2)  # it has been refused by then, more often than not
            server = await asyncio.start_server(echo_at_end, "127.0.0.1", port)
            async with server:
                assert await early == b"ylrae"
                assert await ask_unix(path, b"abc") == b"cba"
            assert await ask_unix(path, b"late") == b""
            async with await asyncio.start_server(echo_at_end, "127.0.0.1", port):
                assert await ask_unix(path, b"again") == b"niaga"
        assert not path.exists()

    story(tell)


def test_a_server_that_never_starts_is_waited_for_no_longer_than_that(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then callers are hung up on."""
    monkeypatch.setattr(ingress, "START_SECONDS", 0.3)

    async def tell() -> None:
        async with serving(partial(ingress.serve, [Mapping("", 443, free_port())])):
            assert await ask_unix(run_directory / "vsock" / "443.sock", b"abc") == b""

    story(tell)
