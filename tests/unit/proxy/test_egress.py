"""The whole way out, all but the guest: a program, the enclave's proxy, vsock, the parent's relay, a server."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from tests.ports import free_port
from tests.unit.proxy.peers import ask_tcp, ask_unix, echo, echo_at_end, serving, story, tcp_server
from tests.unit.proxy.test_dns import query

from alcove.devices.vsock.handshake import peer_name
from alcove.errors import MachineError
from alcove.proxy import dns, egress, egress_relay, exchange, gateways
from alcove.proxy.egress import Egress, EgressConfig
from alcove.proxy.egress_relay import RelayConfig
from alcove.proxy.rules import RefusedError, Rules, parse
from alcove.types import Cid, Port
from alcove.vsock import Listener

PINNED = dict.fromkeys(("good.test", "inner.test", "outer.test", "denied.test"), "127.0.0.1")


@dataclass
class World:
    """A TCP server, and the port of the enclave's proxy."""

    server: int
    proxy: int
    egress: Egress

    async def connect(self, where: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask the proxy for a tunnel: its answer's status line, headers and body, and the streams."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy)
        writer.write(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer:
            answer += await reader.read()
        return answer, reader, writer

    async def through(self, data: bytes) -> bytes:
        """What the server answers through a tunnel."""
        answer, reader, writer = await self.connect(f"good.test:{self.server}")
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        writer.write(data)
        writer.write_eof()
        back = await reader.read()
        writer.close()
        return back


def inner(port: int) -> Rules:
    text = f"allow good.test:{port}\nallow outer.test:{port}\nallow denied.test:{port}\ndeny 192.0.2.0/24\n"
    return parse(text, "the enclave's list")


def outer(port: int) -> Rules:
    text = f"allow good.test:{port}\nallow inner.test:{port}\nallow 127.0.0.1:{port}\nallow denied.test:{port}\n"
    return parse(text + "deny denied.test", "the parent's list")


@asynccontextmanager
async def world(
    handler: Callable[..., object] = echo_at_end, relay: RelayConfig | None = None, **more: object
) -> AsyncIterator[World]:
    async with tcp_server(handler) as port:  # type: ignore[arg-type]
        config = relay or RelayConfig(partial(outer, port), pinned=PINNED)
        proxy = Egress(EgressConfig(inner(port), port=0, **more))  # type: ignore[arg-type]
        async with serving(partial(egress_relay.serve, config)), serving(partial(egress.serve, proxy)) as listening:
            yield World(port, listening, proxy)


def test_a_tunnel_carries_bytes_both_ways(run_directory: Path) -> None:
    """With half-close, and twenty at once."""

    async def tell() -> None:
        async with world() as here:
            data = os.urandom(1 << 20)
            answers = await asyncio.gather(*(here.through(data[n:]) for n in range(20)))
            assert answers == [data[n:][::-1] for n in range(20)]

    story(tell)


def test_a_plain_request_goes_to_its_server(run_directory: Path) -> None:
    """As HTTP_PROXY asks for it; the server sees an ordinary request."""
    heard = []

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    async def tell() -> None:
        async with world(server) as here:
            request = f"GET http://good.test:{here.server}/x HTTP/1.1\r\nHost: good.test\r\n\r\n".encode()
            assert (await ask_tcp(here.proxy, request)).endswith(b"\r\n\r\nhi")
            assert heard[0].startswith(b"GET /x HTTP/1.1\r\nHost: good.test:")

    story(tell)


def test_a_server_that_speaks_first_is_heard(run_directory: Path) -> None:
    """Its words come behind the proxy's answer, and none are lost."""

    async def server(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome")
        writer.close()

    async def tell() -> None:
        async with world(server) as here:
            for _ in range(20):
                assert await here.through(b"") == b"220 welcome"

    story(tell)


def test_each_list_refuses_and_names_its_rule(run_directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the enclave's allows the parent's may refuse, and the other way round; the program hears which."""

    async def tell() -> None:
        async with world() as here:
            for name, words in (
                ("inner.test", b"refused: inner.test:%d: no rule of the enclave's list allows it\n"),
                ("outer.test", b"refused by the parent: outer.test:%d: no rule of the parent's list allows it\n"),
                ("denied.test", b"refused by the parent: denied.test:%d: the parent's list says `deny denied.test` in"),
            ):
                answer, _, writer = await here.connect(f"{name}:{here.server}")
                assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
                assert words % here.server in answer
                writer.close()
            assert here.egress.counters.refused == 1
        assert "CID 3: outer.test" in caplog.text

    story(tell)


def test_a_name_that_leads_to_the_parent_itself_is_refused(run_directory: Path) -> None:
    """An allowed name is no way to the parent's loopback, unless its list allows just that."""

    async def tell() -> None:
        rules = parse("allow **.test:1-65535\nallow good.test:1-65535\nallow 0.0.0.0/0:1-65535", "the parent's list")
        async with world(relay=RelayConfig(lambda: rules, pinned=PINNED)) as here:
            answer, _, writer = await here.connect(f"good.test:{here.server}")
            assert b" 403 " in answer
            assert b"good.test:%d is 127.0.0.1, which is the parent's own" % here.server in answer
            writer.close()

    story(tell)


def test_the_enclaves_list_denies_addresses_that_the_relay_reached(run_directory: Path) -> None:
    """Names are resolved on the parent; what it says it has reached is looked at in the enclave too."""

    async def relay(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stream.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nX-Alcove-Address: 192.0.2.7\r\n\r\n")
        await stream.read()
        writer.close()

    async def tell() -> None:
        (run_directory / "vsock").mkdir(mode=0o700)
        proxy = Egress(EgressConfig(inner(443), port=0))
        server = await asyncio.start_unix_server(relay, str(run_directory / "vsock" / "3128.sock"))
        async with server, serving(partial(egress.serve, proxy)) as port:
            answer, _, writer = await World(0, port, proxy).connect("good.test:443")
            assert b"`deny 192.0.2.0/24`" in answer
            writer.close()

    story(tell)


def test_who_is_not_chosen_is_refused(run_directory: Path) -> None:
    """The relay asks whether it serves this enclave before it reads a word."""

    def admit(cid: int) -> str:
        raise RefusedError(f"CID {cid} is not one of those that were chosen")

    async def tell() -> None:
        async with world(relay=RelayConfig(partial(outer, 443), admit=admit)) as here:
            answer, _, writer = await here.connect(f"good.test:{here.server}")
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"CID 3 is not one of those" in answer
            writer.close()

    story(tell)


def test_what_is_not_there_is_said(run_directory: Path) -> None:
    """A relay that is away, a server that is away, a name that does not resolve: 502 with the reason, at once."""

    async def tell() -> None:
        async with world(relay_port=99) as here:
            answer, _, writer = await here.connect(f"good.test:{here.server}")
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert b"the parent's relay does not answer on vsock port 99" in answer
            writer.close()
        closed = free_port()
        rules = parse(f"allow *.test:{closed}\nallow name.invalid:{closed}\nallow 127.0.0.1:{closed}", "a list")
        proxy = Egress(EgressConfig(rules, port=0))
        config = RelayConfig(lambda: rules, pinned={"good.test": "127.0.0.1"})
        async with serving(partial(egress_relay.serve, config)), serving(partial(egress.serve, proxy)) as port:
            for name, words in (("good.test", b"127.0.0.1: Connection refused"), ("name.invalid", b"cannot reach it")):
                answer, _, writer = await World(0, port, proxy).connect(f"{name}:{closed}")
                assert answer.startswith(b"HTTP/1.1 502 ")
                assert words in answer
                writer.close()

    story(tell)


@pytest.mark.parametrize("says", [b"", b"220 welcome\r\n\r\n"])
def test_a_relay_that_does_not_answer_as_one_is_no_fault_of_the_program(run_directory: Path, says: bytes) -> None:
    """It hangs up, as on an enclave that has its share, or is something else: 502, and not 400."""

    async def other(stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(stream)
            with client:
                await loop.sock_recv(client, 1000)
                await loop.sock_sendall(client, says)

    async def tell() -> None:
        with Listener(3128) as listener:
            listener.socket.setblocking(False)
            serving_it = asyncio.create_task(other(listener.socket))
            proxy = Egress(EgressConfig(inner(443), port=0))
            async with serving(partial(egress.serve, proxy)) as port:
                answer, _, writer = await World(443, port, proxy).connect("good.test:443")
                writer.close()
            serving_it.cancel()
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"the parent's relay does not answer as it should: " in answer

    story(tell)


def test_the_parents_list_is_read_again(run_directory: Path) -> None:
    """For the connections that come then; open ones stay, and a list that is wrong is not taken."""
    lists = ["allow good.test:1-65535\nallow 127.0.0.1:1-65535", "nonsense", ""]

    async def tell() -> None:
        again, logged = asyncio.Event(), asyncio.Event()
        config = RelayConfig(lambda: parse(lists[0], "the parent's list"), pinned=PINNED)
        watch = logging.Handler(logging.WARNING)
        watch.emit = lambda record: logged.set() if "the list was" in record.msg else None  # type: ignore[method-assign]
        logging.getLogger("alcove.proxy").addHandler(watch)

        async def reload() -> None:
            lists.pop(0)
            logged.clear()
            again.set()
            await logged.wait()

        def start(stop: asyncio.Event, ready: Callable[..., None]) -> Awaitable[None]:
            return egress_relay.serve(config, stop, ready, again)

        async with tcp_server(echo) as port:
            proxy = Egress(EgressConfig(inner(port), port=0))
            async with serving(start), serving(partial(egress.serve, proxy)) as listening:
                here = World(port, listening, proxy)
                _, reader, writer = await here.connect(f"good.test:{port}")
                await reload()
                assert await here.through(b"x") == b"x"
                await reload()
                answer, _, refused = await here.connect(f"good.test:{port}")
                assert b" 403 " in answer
                refused.close()
                writer.write(b"still here\n")
                assert await reader.readline() == b"still here\n"
                writer.close()
        logging.getLogger("alcove.proxy").removeHandler(watch)

    story(tell)


def test_hostile_programs_and_enclaves_do_no_harm(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage, heads that never end or come slowly, early closes, floods: at both ends, and ordinary work goes on."""
    monkeypatch.setattr(exchange.read_head, "__defaults__", (0.5,))

    async def tell() -> None:
        async with world() as here:
            relay = run_directory / "vsock" / "3128.sock"
            slow = []
            for garbage in (b"", b"\0" * 5000, b"CONNECT ", b"x" * 100000, b"GET / HTTP/1.1\r\n\r\n", os.urandom(3000)):
                assert b" 200 " not in (await ask_tcp(here.proxy, garbage)).partition(b"\r\n")[0]
                assert b" 200 " not in (await ask_unix(relay, garbage)).partition(b"\r\n")[0]
            for _ in range(200):
                for connecting in (
                    asyncio.open_connection("127.0.0.1", here.proxy),
                    asyncio.open_unix_connection(str(relay)),
                ):
                    reader, writer = await connecting
                    writer.write(b"CONNECT good.te")
                    slow.append((reader, writer))
            answers = await asyncio.gather(*(here.through(b"%d" % n) for n in range(50)))
            assert answers == [(b"%d" % n)[::-1] for n in range(50)]
            ends = await asyncio.gather(*(reader.read() for reader, _ in slow))
            assert all(end.startswith(b"HTTP/1.1 400 ") and b"did not come in time" in end for end in ends)
            for _, writer in slow:
                writer.close()

    story(tell)


def test_an_enclave_that_takes_all_it_can_keeps_no_other_out(run_directory: Path) -> None:
    """Each enclave may have as many connections as are left: there is a place for the next one."""

    async def flood(path: Path, cid: int, count: int) -> list[socket.socket]:
        loop, streams = asyncio.get_running_loop(), []
        for _ in range(count):
            stream = socket.socket(socket.AF_UNIX)
            stream.bind(peer_name(Cid(cid), Port(1), os.urandom(8).hex()))
            stream.setblocking(False)
            await loop.sock_connect(stream, str(path))
            streams.append(stream)
        return streams

    async def held(streams: list[socket.socket], wanted: int) -> int:
        """How many are not hung up on, once all but so many are."""
        loop = asyncio.get_running_loop()
        ends = [asyncio.create_task(loop.sock_recv(stream, 1)) for stream in streams]
        waiting = asyncio.as_completed(ends)
        for _ in range(len(streams) - wanted):
            assert await next(waiting) == b""
        open_still = sum(not end.done() for end in ends)
        for end in ends:
            end.cancel()
        return open_still

    async def tell() -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        config = RelayConfig(rules=lambda: parse("", "the parent's list"), max_connections=16)
        serving = asyncio.create_task(egress_relay.serve(config, stop, ready.set))
        await ready.wait()
        path, streams = run_directory / "vsock" / "3128.sock", []
        for cid, most in ((16, 8), (17, 4), (18, 2)):
            streams += (taken := await flood(path, cid, 40))
            assert await held(taken, most) == most
        for stream in streams:
            stream.close()
        stop.set()
        await serving

    story(tell)


def test_a_thousand_tunnels_at_once(run_directory: Path, descriptors: None) -> None:
    """All are open together, and each gets its own bytes."""

    async def tell() -> None:
        async with world(echo) as here:
            tunnels = await asyncio.gather(*(here.connect(f"good.test:{here.server}") for _ in range(1000)))
            for number, (_, _, writer) in enumerate(tunnels):
                writer.write(b"%d\n" % number)
            lines = await asyncio.gather(*(reader.readline() for _, reader, _ in tunnels))
            assert lines == [b"%d\n" % number for number in range(1000)]
            for _, _, writer in tunnels:
                writer.close()

    story(tell, 120)


async def resolve(port: int, data: bytes) -> bytes:
    """Ask the enclave's resolver."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.connect(("127.0.0.1", port))
        await loop.sock_sendall(asking, data)
        return await loop.sock_recv(asking, 512)


def test_a_program_that_knows_no_proxy_reaches_what_is_allowed(run_directory: Path) -> None:
    """A name gets an address on the loopback, where its port leads through both lists; other names do not exist."""

    async def tell() -> None:
        async with world() as here:
            names = free_port()
            ready = asyncio.Event()
            serving_names = asyncio.create_task(gateways.serve(here.egress, ready.set, names))
            await ready.wait()
            answer = await resolve(names, query("Good.test"))
            address = socket.inet_ntoa(answer[-4:])
            assert address.startswith("127.64.0.")
            assert (await resolve(names, query("good.test")))[-4:] == answer[-4:]
            reader, writer = await asyncio.open_connection(address, here.server)
            writer.write(b"abc")
            writer.write_eof()
            assert await reader.read() == b"cba"
            writer.close()
            assert (await resolve(names, query("inner.test")))[3] & 15 == dns.NO_SUCH_NAME
            assert struct.unpack(">H", (await resolve(names, query("good.test", kind=28)))[6:8]) == (0,)
            serving_names.cancel()
            await asyncio.gather(serving_names, return_exceptions=True)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(address, here.server)

    story(tell)


def test_a_port_that_is_taken_is_said(run_directory: Path) -> None:
    """One line: which port, and why."""

    async def tell() -> None:
        async with world() as here:
            second = Egress(replace(here.egress.config, port=here.proxy))
            with pytest.raises(MachineError, match=f"cannot listen on 127.0.0.1 port {here.proxy}"):
                await egress.serve(second, asyncio.Event(), lambda _: None)

    story(tell)
