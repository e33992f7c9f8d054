from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.ports import free_port
from tests.unit.proxy.peers import Handler, ask_tcp, ask_unix, echo, echo_at_end, serving, story, tcp_server

from alcove.errors import InputError, MachineError, UsageError
from alcove.proxy import vsock_proxy
from alcove.proxy.allowlist import Route
from alcove.proxy.ports import Mapping
from alcove.proxy.resolver import Found, Resolver
from alcove.proxy.vsock_proxy import ProxyConfig, VsockProxy
from alcove.vsock.unix_listener import listening


def config(tmp_path: Path, port: int, *, host: str = "127.0.0.1", **more: object) -> ProxyConfig:
    allowlist = tmp_path / "allow.yaml"
    allowlist.write_text(f"allowlist:\n- {{address: {host}, port: {port}}}\n")
    return ProxyConfig(tmp_path, allowlist, Route(8000, host, port), **more)  # type: ignore[arg-type]


@asynccontextmanager
async def proxied(tmp_path: Path, handler: Handler = echo_at_end, **more: object) -> AsyncIterator[Path]:
    """A TCP server behind a proxy; yields the proxy's socket."""
    async with tcp_server(handler) as port, running(config(tmp_path, port, **more)) as path:
        yield path


@asynccontextmanager
async def running(proxy: ProxyConfig) -> AsyncIterator[Path]:
    async with serving(VsockProxy(proxy).serve):
        yield proxy.ports / "8000.sock"


def test_bytes_go_both_ways_and_one_end_leaves_the_other_open(tmp_path: Path) -> None:
    """Half-close: the server's answer arrives after the caller has ended its own direction."""

    async def tell() -> None:
        async with proxied(tmp_path) as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            data = bytes(range(256)) * 4096
            answers = await asyncio.gather(*(ask_unix(path, data[i:]) for i in range(20)))
            assert answers == [data[i:][::-1] for i in range(20)]
        assert not (tmp_path / "8000.sock").exists()

    story(tell)


def test_a_server_that_ends_first_can_still_be_written_to(tmp_path: Path) -> None:
    """The other direction is half-closed too."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def talk_then_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.put_nowait(await reader.read())
        writer.close()

    async def tell() -> None:
        async with proxied(tmp_path, talk_then_listen) as path:
            reader, writer = await asyncio.open_unix_connection(str(path))
            assert await reader.read() == b"bye"
            writer.write(b"last words")
            writer.write_eof()
            assert await heard.get() == b"last words"
            writer.close()

    story(tell)


def test_a_dead_remote_closes_that_connection_and_nothing_else(tmp_path: Path) -> None:
    """Nobody hangs, and when the remote is back the same proxy serves it."""

    async def tell() -> None:
        port = free_port()
        async with running(config(tmp_path, port)) as path:
            assert await ask_unix(path, b"x") == b""
            assert await ask_unix(path, b"x") == b""
            async with await asyncio.start_server(echo_at_end, "127.0.0.1", port):
                assert await ask_unix(path, b"abc") == b"cba"

    story(tell)


def test_a_name_that_does_not_resolve_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listed name is served whatever the resolver says at the moment; later it is asked again."""

    async def tell() -> None:
        async with tcp_server() as port:
            answers: list[list[Found]] = [[], [(socket.AF_INET, ("127.0.0.1", port))]]

            async def lookup(_resolver: Resolver, _host: str, _port: int) -> list[Found]:
                if not answers[0]:
                    answers.pop(0)
                    raise socket.gaierror(socket.EAI_AGAIN, "try again")
                return answers[0]

            monkeypatch.setattr(Resolver, "_getaddrinfo", lookup)
            async with running(config(tmp_path, port, host="kms.invalid")) as path:
                assert await ask_unix(path, b"abc") == b""
                assert await ask_unix(path, b"abc") == b"cba"

    story(tell)


def test_the_connection_limit_makes_callers_wait(tmp_path: Path) -> None:
    """Beyond the limit a caller waits in the backlog, and is served when there is room."""

    async def tell() -> None:
        async with proxied(tmp_path, max_connections=1) as path:
            _, first = await asyncio.open_unix_connection(str(path))
            second = asyncio.create_task(ask_unix(path, b"abc"))
            await asyncio.sleep(0.1)
            assert not second.done()
            first.close()
            assert await second == b"cba"

    story(tell)


@pytest.mark.parametrize("family", ["4", "6"])
def test_the_family_filters_addresses(tmp_path: Path, family: str) -> None:
    """With -6 an IPv4 server is not reached (and the service goes on)."""

    async def tell() -> None:
        async with proxied(tmp_path, family=family) as path:
            assert await ask_unix(path, b"x") == (b"x" if family == "4" else b"")

    story(tell)


def test_a_remote_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    """AWS's own words, and no socket."""
    proxy = config(tmp_path, 1)
    proxy.file.write_text("allowlist:\n- {address: 127.0.0.1, port: 2}\n")
    with pytest.raises(UsageError, match="The given address and port are not allowed"):
        vsock_proxy.run(proxy, lambda _: None)
    proxy.file.unlink()
    with pytest.raises(InputError):
        vsock_proxy.run(proxy, lambda _: None)
    assert not (tmp_path / "8000.sock").exists()


@pytest.mark.parametrize("change", [{"port": 0}, {"port": 65536}, {"family": "5"}, {"max_connections": 0}, {"ttl": -1}])
def test_a_configuration_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """An invalid configuration does not exist."""
    with pytest.raises(UsageError):
        config(tmp_path, **({"port": 1} | change))  # type: ignore[arg-type]


LISTED = "allowlist:\n- {address: 127.0.0.1, port: 1-65535}\nlisteners:\n"


def listeners(*pairs: tuple[int, int]) -> str:
    """A file with these listeners."""
    rows = (f"- {{port: {local}, address: 127.0.0.1, remote_port: {port}}}\n" for local, port in pairs)
    return LISTED + ("".join(rows) or "[]")


def test_many_destinations_from_one_process_and_a_file_that_is_read_again(tmp_path: Path) -> None:
    """New listeners come, old ones go, a port may lead elsewhere; connections stay; a bad file changes nothing."""

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async def tell() -> None:
        file, again = tmp_path / "proxy.yaml", asyncio.Event()
        said: asyncio.Queue[list[Route]] = asyncio.Queue()
        sockets = [tmp_path / f"{port}.sock" for port in (8000, 8001, 8002)]
        async with tcp_server(echo) as echoing, tcp_server(shout) as shouting:
            file.write_text(listeners((8000, echoing), (8001, shouting)))
            proxy = VsockProxy(ProxyConfig(tmp_path, file))

            def start(stop: asyncio.Event, ready: Callable[..., None]) -> Awaitable[None]:
                return proxy.serve(stop, lambda routes: (said.put_nowait(routes), ready())[1], again)

            async with serving(start):
                assert await said.get() == [Route(8000, "127.0.0.1", echoing), Route(8001, "127.0.0.1", shouting)]
                reader, writer = await asyncio.open_unix_connection(str(sockets[1]))
                assert await ask_unix(sockets[0], b"abc") == b"abc"
                file.write_text(listeners((8000, shouting), (8002, echoing)))
                again.set()
                assert [route.local_port for route in await said.get()] == [8000, 8002]
                assert await ask_unix(sockets[0], b"abc") == b"ABC"
                assert await ask_unix(sockets[2], b"abc") == b"abc"
                assert not sockets[1].exists()
                writer.write(b"still")
                writer.write_eof()
                assert await reader.read() == b"STILL"
                writer.close()
                file.write_text("allowlist: []\nlisteners: [{port: 1, address: 127.0.0.1, remote_port: 1}]")
                await proxy._reload(said.put_nowait)
                assert said.empty()
                assert await ask_unix(sockets[2], b"abc") == b"abc"

    story(tell)


def test_a_port_that_is_anothers_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """One listener that cannot be had: none of the new ones come, and the old ones go on."""

    async def tell() -> None:
        file, again = tmp_path / "proxy.yaml", asyncio.Event()
        async with tcp_server() as port:
            file.write_text(listeners((8000, port)))
            proxy = VsockProxy(ProxyConfig(tmp_path, file))
            with listening(tmp_path / "8002.sock"):
                async with serving(lambda stop, ready: proxy.serve(stop, ready, again)):
                    file.write_text(listeners((8001, port), (8002, port)))
                    await proxy._reload(lambda _: None)
                    assert not (tmp_path / "8001.sock").exists()
                    assert await ask_unix(tmp_path / "8000.sock", b"abc") == b"cba"

    story(tell)


def test_the_metrics_are_told(tmp_path: Path) -> None:
    """In Prometheus's format, on the loopback: connections, failures and bytes of each listener."""

    async def tell() -> None:
        where = free_port()
        async with proxied(tmp_path, metrics=Mapping("", where, where)) as path:
            assert await ask_unix(path, b"abc") == b"cba"
            answer = await ask_tcp(where, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"# TYPE alcove_proxy_accepted_connections_total counter\n" in answer
            for row in (b"accepted_connections_total", b"open_connections", b"sent_bytes_total"):
                value = {b"accepted_connections_total": 1, b"open_connections": 0, b"sent_bytes_total": 3}[row]
                assert b"alcove_proxy_%s{listener=" % row in answer
                assert b"} %d\n" % value in answer
            assert (await ask_tcp(where, b"GET /other HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
            for garbage in (b"", b"\x00" * 100, b"x" * 100000):
                assert not (await ask_tcp(where, garbage)).startswith(b"HTTP/1.1 200")
            assert (await ask_tcp(where, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")

    story(tell)


def test_hostile_peers_do_no_harm(tmp_path: Path) -> None:
    """Floods, early closes and peers that never read, on both sides: an ordinary caller is served all the while."""

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(1)
        if first == b"!":
            writer.transport.abort()
        elif first == b"#":
            writer.write(bytes(8 << 20))  # to somebody who does not read
            await reader.read()
            writer.close()
        else:
            writer.write(first + await reader.read())
            writer.close()

    async def tell() -> None:
        async with proxied(tmp_path, rude) as path:
            deaf = []
            for number in range(300):
                _, writer = await asyncio.open_unix_connection(str(path))
                writer.write((b"!", b"#", b"", b"data")[number % 4])
                if number % 3:
                    writer.transport.abort()
                else:
                    deaf.append(writer)
            answers = await asyncio.gather(*(ask_unix(path, b"hello %d" % n) for n in range(100)))
            assert answers == [b"hello %d" % n for n in range(100)]
            for writer in deaf:
                writer.transport.abort()

    story(tell)


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
