"""Credentials for enclaves: made, kept, renewed, and taken by botocore as it is."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
from functools import partial
from pathlib import Path

import pytest
from botocore.session import Session
from tests.unit.proxy.peers import ask_tcp, ask_unix, serving, story

from alcove.errors import MachineError
from alcove.proxy import credentials, outward
from alcove.proxy.credentials import Provider, ProviderConfig
from alcove.proxy.lease import Lease
from alcove.proxy.ports import Mapping
from alcove.proxy.rules import RefusedError

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class Sts:
    """Makes leases of an hour; counts them; fails when told to. The time is the test's."""

    def __init__(self, seconds: int = 3600) -> None:
        self.made = 0
        self.fails = False
        self.now = START
        self.seconds = seconds

    def lease(self) -> Lease:
        """A new one."""
        if self.fails:
            raise MachineError("STS is away")
        self.made += 1
        return Lease(f"AKIA{self.made}", "secret", "token", self.now + dt.timedelta(seconds=self.seconds))

    def provider(self) -> Provider:
        """A provider that asks here."""
        return Provider(ProviderConfig(self.lease, "CID {}".format), clock=lambda: self.now)


def test_a_lease_is_kept_until_little_of_it_is_left() -> None:
    """Then it is made anew: an SDK never gets one that it would have to renew at once."""

    async def tell() -> None:
        sts = Sts()
        provider = sts.provider()
        assert [(await provider.lease()).access_key_id for _ in range(3)] == ["AKIA1"] * 3
        sts.now += dt.timedelta(seconds=2600)
        assert (await provider.lease()).access_key_id == "AKIA1"
        sts.now += dt.timedelta(seconds=200)
        assert (await provider.lease()).access_key_id == "AKIA2"
        leases = await asyncio.gather(*(provider.lease() for _ in range(50)))
        assert {lease.access_key_id for lease in leases} == {"AKIA2"}
        assert sts.made == 2

    story(tell)


def test_a_short_lease_is_renewed_at_half_time() -> None:
    """And not at every question."""

    async def tell() -> None:
        sts = Sts(seconds=900)
        provider = sts.provider()
        for seconds, made in ((0, 1), (440, 1), (20, 2), (100, 2)):
            sts.now += dt.timedelta(seconds=seconds)
            await provider.lease()
            assert sts.made == made

    story(tell)


def test_a_lease_that_cannot_be_renewed_serves_to_its_end() -> None:
    """STS may be away for a while; a lease that is over is not handed out."""

    async def tell() -> None:
        sts = Sts()
        provider = sts.provider()
        await provider.lease()
        sts.fails = True
        sts.now += dt.timedelta(seconds=3500)
        assert (await provider.lease()).access_key_id == "AKIA1"
        sts.now += dt.timedelta(seconds=200)
        with pytest.raises(MachineError, match="STS is away"):
            await provider.lease()
        sts.fails = False
        assert (await provider.lease()).access_key_id == "AKIA2"

    story(tell)


def fetch_with_botocore(port: int) -> tuple[str, str, str]:
    """What an unmodified SDK finds, which has nothing else to find."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{port}/credentials",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    try:
        found = Session().get_credentials()
        assert found is not None
        assert found.method == "container-role"
        frozen = found.get_frozen_credentials()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return frozen.access_key, frozen.secret_key, frozen.token


def test_an_unmodified_sdk_takes_them(run_directory: Path) -> None:
    """Botocore's own container provider, through the enclave's loopback and vsock."""

    async def tell() -> None:
        sts = Sts()
        sts.now = dt.datetime.now(dt.UTC)
        provider = partial(credentials.serve, ProviderConfig(sts.lease, "CID {}".format))
        async with serving(provider), serving(partial(outward.serve, Mapping("", 0, 9040))) as port:
            assert await asyncio.to_thread(fetch_with_botocore, port) == ("AKIA1", "secret", "token")

    story(tell)


def test_who_is_not_chosen_gets_none_and_failures_tell_nothing(
    run_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """403 and 503 in SDKs' form; the reason is for the parent's log. Garbage ends nothing."""

    def admit(cid: int) -> str:
        if chosen:
            return "app"
        raise RefusedError(f"the enclave with CID {cid} was not chosen")

    chosen: list[int] = []
    request = b"GET /credentials HTTP/1.1\r\nHost: x\r\n\r\n"

    async def tell() -> None:
        sts = Sts()
        sts.now = dt.datetime.now(dt.UTC)
        path = run_directory / "vsock" / "9040.sock"
        async with serving(partial(credentials.serve, ProviderConfig(sts.lease, admit))):
            refused = await ask_unix(path, request)
            assert refused.startswith(b"HTTP/1.1 403 ")
            assert b"CID" not in refused
            chosen.append(1)
            sts.fails = True
            assert (await ask_unix(path, request)).endswith(b'{"message": "there are no credentials now"}')
            sts.fails = False
            for garbage in (
                b"",
                b"\0" * 100,
                b"x" * 100000,
                b"GET /other HTTP/1.1\r\n\r\n",
                b"POST /credentials X\r\n\r\n",
            ):
                assert b"AKIA" not in await ask_unix(path, garbage)
            given = await ask_unix(path, request)
            assert json.loads(given.partition(b"\r\n\r\n")[2])["AccessKeyId"] == "AKIA1"
        assert "the enclave with CID 3 was not chosen" in caplog.text
        assert "secret" not in caplog.text

    story(tell)


def test_a_way_outward_without_a_server_closes_at_once(run_directory: Path) -> None:
    """A program in the enclave hears the end, and does not hang."""

    async def tell() -> None:
        async with serving(partial(outward.serve, Mapping("", 0, 9040))) as port:
            assert await ask_tcp(port, b"x") == b""

    story(tell)


def test_a_lease_does_not_show_its_secrets() -> None:
    """Not in a traceback, not in a log."""
    assert "secret" not in repr(Lease("AKIA", "secret", "token-secret", START))
