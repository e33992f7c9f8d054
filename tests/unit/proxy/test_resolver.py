from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
from tests.ports import free_port
from tests.unit.proxy.peers import story, tcp_server

from alcove.proxy import resolver as resolving
from alcove.proxy.resolver import Found, Resolver

A, B = (socket.AF_INET, ("192.0.2.1", 443)), (socket.AF_INET, ("192.0.2.2", 443))


class Names:
    """A resolver's answers, and how often it was asked; the time is the test's."""

    def __init__(self) -> None:
        self.answer: list[Found] | OSError = [A]
        self.asked = 0
        self.now = 0.0
        self.wait = asyncio.Event()
        self.wait.set()

    async def lookup(self, _host: str, _port: int) -> list[Found]:
        """Answer, when it is time."""
        self.asked += 1
        await self.wait.wait()
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer

    def resolver(self) -> Resolver:
        """One that asks here."""
        return Resolver(ttl=30, lookup=self.lookup, clock=lambda: self.now)


def with_names(scenario: Callable[[Names, Resolver], object]) -> None:
    async def run() -> None:
        names = Names()
        await scenario(names, names.resolver())  # type: ignore[misc]

    story(run)


def test_an_answer_is_kept_for_its_time() -> None:
    """Within it nobody is asked; after it the new answer counts."""

    async def scenario(names: Names, resolver: Resolver) -> None:
        assert [await resolver.resolve("a", 443) for _ in range(3)] == [[A]] * 3
        assert names.asked == 1
        names.now, names.answer = 31, [B]
        assert await resolver.resolve("a", 443) == [B]
        assert await resolver.resolve("b", 443) == [B]
        assert names.asked == 3

    with_names(scenario)


def test_many_who_ask_at_once_are_one_question() -> None:
    """Also when the one who asked first does not wait for the answer."""

    async def scenario(names: Names, resolver: Resolver) -> None:
        names.wait.clear()
        first, *rest = [asyncio.create_task(resolver.resolve("a", 443)) for _ in range(100)]
        await asyncio.sleep(0)
        first.cancel()
        names.wait.set()
        assert await asyncio.gather(*rest) == [[A]] * 99
        assert names.asked == 1

    with_names(scenario)


def test_an_old_answer_is_better_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that fails or hangs is bridged, for an hour; who was never resolved hears the reason."""
    monkeypatch.setattr(resolving, "LOOKUP_SECONDS", 0.01)

    async def scenario(names: Names, resolver: Resolver) -> None:
        await resolver.resolve("a", 443)
        names.now, names.answer = 100, socket.gaierror(socket.EAI_AGAIN, "try again")
        assert await resolver.resolve("a", 443) == [A]
        names.wait.clear()
        assert await resolver.resolve("a", 443) == [A]
        with pytest.raises(OSError, match="b: the resolver does not answer"):
            await resolver.resolve("b", 443)
        names.wait.set()
        names.now = 4000
        with pytest.raises(OSError, match="try again"):
            await resolver.resolve("a", 443)

    with_names(scenario)


def test_names_that_an_enclave_makes_up_do_not_fill_the_memory() -> None:
    """Beyond the limit the oldest is forgotten."""

    async def scenario(names: Names, resolver: Resolver) -> None:
        for number in range(resolving.MAX_NAMES + 10):
            await resolver.resolve(f"name-{number}", 443)
        assert len(resolver._known) == resolving.MAX_NAMES
        await resolver.resolve("name-0", 443)
        assert names.asked == resolving.MAX_NAMES + 11

    with_names(scenario)


def test_every_address_is_tried_and_a_dead_one_is_last_from_then_on() -> None:
    """The second address serves; the next connection begins with it, also when the answer is asked for anew."""

    async def scenario(names: Names, resolver: Resolver) -> None:
        async with tcp_server() as port:
            dead, alive = ((socket.AF_INET, ("127.0.0.1", each)) for each in (free_port(), port))
            names.answer = [dead, alive]
            for _ in range(2):
                stream = await resolver.connect("a", 443)
                assert stream.getpeername()[1] == port
                stream.close()
                assert await resolver.resolve("a", 443) == [alive, dead]
                names.now += 31
            assert names.answer == [dead, alive]

    with_names(scenario)


def test_nobody_answers_is_said() -> None:
    """With the host and what the last address met; a family without an address in AWS's words."""

    async def scenario(names: Names, resolver: Resolver) -> None:
        names.answer = [(socket.AF_INET, ("127.0.0.1", free_port()))]
        with pytest.raises(OSError, match=r"a:443: 127.0.0.1: Connection refused"):
            await resolver.connect("a", 443)
        names.answer = []
        with pytest.raises(OSError, match=r"No accepted IP was found."):
            await resolver.connect("b", 443)

    with_names(scenario)


def test_an_address_that_is_refused_is_not_connected_to() -> None:
    """Not even when another of the name's addresses is fine: the name is not what it was allowed for."""

    async def scenario(names: Names, resolver: Resolver) -> None:
        names.answer = [A, B]

        def allowed(found: Found) -> None:
            if found == B:
                raise PermissionError("refused")

        with pytest.raises(PermissionError):
            await resolver.connect("a", 443, allowed)

    with_names(scenario)


def test_the_machines_own_resolver_is_asked() -> None:
    """getaddrinfo, in a thread."""

    async def run() -> None:
        resolver = Resolver("4")
        assert await resolver.resolve("localhost", 80) == [(socket.AF_INET, ("127.0.0.1", 80))]
        with pytest.raises(OSError, match=r".+"):
            await resolver.resolve("name.invalid", 80)
        resolver.close()

    story(run)
