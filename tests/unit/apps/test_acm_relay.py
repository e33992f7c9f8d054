"""Nobody waits for an enclave that does not answer: neither a p11-kit client nor a real nginx with libp11."""

from __future__ import annotations

import asyncio
import os
import resource
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.apps.acm_device import PIN, certificate, ec_key, refused, serving, token, unix_address
from tests.unit.apps.acm_front import Front, front
from tests.unit.apps.test_acm_server import Wire, signs
from tests.unit.apps.test_acm_webserver import NGINX, Nginx, eventually

from alcove.apps.acm import relay, stanza, webserver, workers
from alcove.apps.acm.cryptoki import Ckr
from alcove.apps.acm.token import Slots
from alcove.errors import UsageError

CLIENT = next(Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so"), None)


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """A relay that leads to a token, and is patient for a second."""
    monkeypatch.setattr(relay, "ANSWER_SECONDS", 1.0)
    slots = Slots(time.monotonic)
    slots.add(token("t", [ec_key()]))
    with serving(slots, unix_address(tmp_path)), front(tmp_path) as made:
        yield made


def refuses(wire: Wire) -> None:
    """Sessions are given, for libp11 waits for ever without; nothing comes of them; the connection goes on."""
    for _ in range(2):
        session = wire("C_OpenSession", 0, 4)
        with refused(Ckr.DEVICE_REMOVED):
            wire("C_Login", session, 1, PIN)
        with refused(Ckr.DEVICE_REMOVED):
            wire("C_GetSlotList", 1, 99)


def test_a_conversation_passes(way: Front) -> None:
    """In single bytes and all at once."""
    with closing(Wire(way.socket)) as wire:
        wire.begin()
        assert signs(wire)
        for byte in wire.frame("C_GetSlotList", 1, None):
            wire.socket.sendall(bytes([byte]))
        assert wire.answer()[1]
        frames = [wire.frame("C_GetSlotList", 1, 99) for _ in range(2000)]
        wire.socket.sendall(b"".join(frames))
        codes = [wire.answer()[0] for _ in frames]
        assert codes == list(range(codes[0], codes[0] + 2000))
    assert way.log == []


@pytest.mark.parametrize("name", ["C_OpenSession", "C_GetSlotList"])
def test_a_silent_enclave_is_given_up(way: Front, name: str) -> None:
    """The request that waits is refused, or given a session; so are those after it; the agent is told."""
    with closing(Wire(way.socket)) as wire:
        wire.begin()
        way.silent = True
        if name == "C_OpenSession":
            assert wire(name, 0, 4) == 1
        else:
            with refused(Ckr.DEVICE_REMOVED):
                wire(name, 1, 99)
        eventually(lambda: way.stalled)
        way.silent = False
        refuses(wire)
    with closing(Wire(way.socket)) as other:
        other.begin()
        assert signs(other)
    assert way.log == ["the enclave did not answer for 1 s: what was asked is refused"]


def test_a_client_that_asks_nothing_may_rest(way: Front) -> None:
    """Longer than an answer may take."""
    with closing(Wire(way.socket)) as wire:
        wire.begin()
        time.sleep(2.5)
        assert signs(wire)
    assert not way.stalled


def test_silence_before_the_first_answer_ends_the_connection(way: Front) -> None:
    """There is nothing to say before the versions are agreed; p11-kit takes that for an error."""
    way.silent = True
    with closing(Wire(way.socket)) as wire:
        wire.socket.sendall(b"\0")
        assert wire.ended()


@pytest.mark.parametrize("how", ["enclave", "agent"])
def test_an_enclave_that_goes_leaves_no_request_open(way: Front, how: str) -> None:
    """Its connections break, or the agent sees its end first: old clients are refused, new ones closed out."""
    with closing(Wire(way.socket)) as wire:
        wire.begin()
        wire("C_OpenSession", 0, 4)
        if how == "enclave":
            way.hang_up()
        else:
            way.point(here=False)
        refuses(wire)
        if how == "agent":
            with closing(Wire(way.socket)) as other:
                assert other.ended()
        way.point(here=True)
        refuses(wire)
        with closing(Wire(way.socket)) as another:
            another.begin()
            assert signs(another)
    assert not way.stalled


def test_what_is_not_p11_kit_is_closed(way: Front) -> None:
    """While the enclave is there, and after it."""
    for gone in (False, True):
        with closing(Wire(way.socket)) as wire:
            wire.begin()
            if gone:
                way.hang_up()
                refuses(wire)
            wire.socket.sendall(b"\0" * 12)
            assert wire.ended()
    assert all(line.startswith("a connection was ended: a frame with code 0") for line in way.log)


def test_a_process_out_of_descriptors_accepts_again_later(way: Front) -> None:
    """What comes meanwhile waits, and is served once there are some."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))  # the client's, and no more
    try:
        wire = Wire(way.socket)
        eventually(lambda: "a connection was not accepted: Too many open files" in way.log)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with closing(wire):
        wire.begin()
        assert signs(wire)


def test_there_are_as_many_clients_as_may_be(way: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is hung up on, and does not wait; when one goes there is room again."""
    monkeypatch.setattr(relay, "MAX_CLIENTS", 2)
    with closing(Wire(way.socket)) as first:
        first.begin()
        second = Wire(way.socket)
        second.begin()
        with closing(Wire(way.socket)) as third:
            third.socket.settimeout(10)  # the enclave would hang up after 30 s
            assert third.ended()
        second.close()

        def served() -> bool:
            with closing(Wire(way.socket)) as wire:
                try:
                    wire.begin()
                except (OSError, IndexError):  # hung up on
                    return False
                return True

        eventually(served)
        assert signs(first)


def test_a_group_that_is_none_is_told(tmp_path: Path) -> None:
    """In a sentence with its place in acm.yaml, and no socket is left."""

    async def serve() -> None:
        async with relay.Relay(tmp_path / "p11.sock", 9999, "no-such-group", lambda _: None).serving():
            raise AssertionError

    with pytest.raises(UsageError, match=r"^acm.yaml: options.socket_group: there is no group no-such-group$"):
        asyncio.run(serve())
    assert list(tmp_path.iterdir()) == []


def tls_server(way: Front, directory: Path) -> Nginx:
    """The token's key in nginx."""
    uri = f"pkcs11:token=t;id=%01;type=private?pin-value={PIN.decode()}"
    (directory / "chain.pem").write_bytes(certificate(ec_key()).public_bytes(Encoding.PEM))
    (directory / "web.conf").write_text(stanza.nginx(uri, directory / "chain.pem", "engine"))
    environment = {"P11_KIT_SERVER_ADDRESS": f"unix:path={way.socket}", "PKCS11_MODULE_PATH": str(CLIENT)}
    (directory / "nginx").mkdir()
    return Nginx(directory / "nginx", directory / "web.conf", environment)


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None or CLIENT is None, reason="`scripts/setup --tests` has not been run")
def test_nginx_s_handshakes_fail_and_its_workers_go_on(way: Front, tmp_path: Path) -> None:
    """The enclave falls silent at a worker's first session, which an error would hang for ever: an alert, twice."""
    nginx = tls_server(way, tmp_path)
    try:
        way.silent_from = "C_OpenSession"
        for _ in range(4):  # two for each worker
            with pytest.raises(ssl.SSLError, match="alert internal error"):
                nginx.get()
    finally:
        nginx.end()


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None or CLIENT is None, reason="`scripts/setup --tests` has not been run")
def test_a_worker_that_hangs_does_not_keep_a_change_out(
    way: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token cannot be reached at a worker's first signature, and libp11 hangs; then it can, and a change comes."""
    monkeypatch.setattr(workers, "DEAF_SECONDS", 1.0)
    nginx = tls_server(way, tmp_path)
    try:
        way.socket.rename(tmp_path / "away")
        with pytest.raises(OSError, match=r"timed out|alert internal error"):  # newer versions of libp11 do not hang
            nginx.get(seconds=2)
        (tmp_path / "away").rename(way.socket)
        for _ in range(2):
            assert webserver.apply(nginx.options) == f"nginx went on as process {nginx.pid}"
            assert nginx.get()
        eventually(lambda: workers.running(tmp_path / "nginx" / "nginx.pid.oldbin") is None)
    finally:
        nginx.end()
