from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from alcove.errors import InputError, MachineError, UsageError
from alcove.proxy import vsock_proxy
from alcove.proxy.vsock_proxy import ProxyConfig, serve
from alcove.vsock.unix_listener import listening

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo_at_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer only after the caller's end: without half-close nothing would come back."""
    data = await reader.read()
    writer.write(data[::-1])
    await writer.drain()
    writer.close()


def config(tmp_path: Path, port: int, *, host: str = "127.0.0.1", **more: object) -> ProxyConfig:
    allowlist = tmp_path / "allow.yaml"
    allowlist.write_text(f"allowlist:\n- {{address: {host}, port: {port}}}\n")
    return ProxyConfig(tmp_path / "8000.sock", host, port, allowlist, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def proxied(tmp_path: Path, handler: Handler = echo_at_end, **more: object) -> AsyncIterator[Path]:
    """A TCP server behind a proxy; yields the proxy's socket."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, running(config(tmp_path, port, **more)) as path:
        yield path


@asynccontextmanager
async def running(proxy: ProxyConfig) -> AsyncIterator[Path]:
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve(proxy, ready.set, stop))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    try:
        if not task.done():
            yield proxy.socket_path
    finally:
        stop.set()
        await task


async def ask(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    await writer.drain()
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def run(coroutine: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await coroutine

    asyncio.run(limited())


def test_bytes_go_both_ways_and_one_end_leaves_the_other_open(tmp_path: Path) -> None:
    """Half-close: the server's answer arrives after the caller has ended its own direction."""

    async def story() -> None:
        async with proxied(tmp_path) as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            data = bytes(range(256)) * 4096
            answers = await asyncio.gather(*(ask(path, data[i:]) for i in range(20)))
            assert answers == [data[i:][::-1] for i in range(20)]
        assert not (tmp_path / "8000.sock").exists()

    run(story())


def test_a_server_that_ends_first_can_still_be_written_to(tmp_path: Path) -> None:
    """The other direction is half-closed too."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def talk_then_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.put_nowait(await reader.read())
        writer.close()

    async def story() -> None:
        async with proxied(tmp_path, talk_then_listen) as path:
            reader, writer = await asyncio.open_unix_connection(str(path))
            assert await reader.read() == b"bye"
            writer.write(b"last words")
            writer.write_eof()
            assert await heard.get() == b"last words"
            writer.close()

    run(story())


def test_a_dead_remote_closes_that_connection_and_nothing_else(tmp_path: Path) -> None:
    """Nobody hangs, and when the remote is back the same proxy serves it."""

    async def story() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        async with running(config(tmp_path, port)) as path:
            assert await ask_or_reset(path) == b""
            assert await ask_or_reset(path) == b""
            async with await asyncio.start_server(echo_at_end, "127.0.0.1", port):
                assert await ask(path, b"abc") == b"cba"

    run(story())


async def ask_or_reset(path: Path) -> bytes:
    try:
        return await ask(path, b"x")
    except (ConnectionResetError, BrokenPipeError):
        return b""


def test_a_name_that_does_not_resolve_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listed name is served whatever the resolver says at the moment; later it is asked again."""

    async def story() -> None:
        server = await asyncio.start_server(echo_at_end, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        answers: list[list[object]] = [
            [],
            [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 1)),  # the first address is dead
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            ],
        ]

        async def getaddrinfo(host: str, *_: object, **__: object) -> list[object]:
            if not answers[0]:
                answers.pop(0)
                raise socket.gaierror(socket.EAI_AGAIN, "try again")
            return answers[0]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        async with server, running(config(tmp_path, port, host="kms.invalid")) as path:
            assert await ask_or_reset(path) == b""
            assert await ask(path, b"abc") == b"cba"

    run(story())


def test_the_connection_limit_makes_callers_wait(tmp_path: Path) -> None:
    """Beyond the limit a caller waits in the backlog, and is served when there is room."""

    async def story() -> None:
        async with proxied(tmp_path, max_connections=1) as path:
            _, first = await asyncio.open_unix_connection(str(path))
            second = asyncio.create_task(ask(path, b"abc"))
            await asyncio.sleep(0.1)
            assert not second.done()
            first.close()
            assert await second == b"cba"

    run(story())


@pytest.mark.parametrize("family", ["4", "6"])
def test_the_family_filters_addresses(tmp_path: Path, family: str) -> None:
    """With -6 an IPv4 server is not reached (and the service goes on)."""

    async def story() -> None:
        async with proxied(tmp_path, family=family) as path:
            assert await ask_or_reset(path) == (b"x" if family == "4" else b"")

    run(story())


def test_a_remote_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    """AWS's own words, and no socket."""
    proxy = config(tmp_path, 1)
    proxy.allowlist.write_text("allowlist:\n- {address: 127.0.0.1, port: 2}\n")
    with pytest.raises(UsageError, match="The given address and port are not allowed"):
        vsock_proxy.run(proxy, lambda: None)
    proxy.allowlist.unlink()
    with pytest.raises(InputError):
        vsock_proxy.run(proxy, lambda: None)
    assert not proxy.socket_path.exists()


@pytest.mark.parametrize("change", [{"port": 0}, {"port": 65536}, {"family": "5"}, {"max_connections": 0}])
def test_a_configuration_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """An invalid configuration does not exist."""
    with pytest.raises(UsageError):
        config(tmp_path, **({"port": 1} | change))  # type: ignore[arg-type]


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    """Nobody's socket is taken over, and what a killed proxy left does not stand in the way."""
    path = tmp_path / "8000.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(path):
        with pytest.raises(MachineError, match="another program"), listening(path):
            pass
        assert path.is_socket()
    assert list(tmp_path.iterdir()) == []
    path.write_text("not a socket")
    with pytest.raises(MachineError, match="not a socket"), listening(path):
        pass
    assert path.read_text() == "not a socket"


def test_a_socket_that_is_anothers_by_now_is_left_alone(tmp_path: Path) -> None:
    """Only our own file is removed at the end."""
    path = tmp_path / "8000.sock"
    with listening(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"
