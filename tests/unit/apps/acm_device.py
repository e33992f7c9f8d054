"""A device with tokens, and a server of it in a thread, for tests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from alcove.apps.acm import message
from alcove.apps.acm.calls import BY_NAME
from alcove.apps.acm.client import Client
from alcove.apps.acm.cryptoki import Cka, Cko, Ckr, Refused
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.mechanisms import Profile
from alcove.apps.acm.objects import TokenObject, certificate_objects, key_objects
from alcove.apps.acm.server import P11Server, listen
from alcove.apps.acm.token import TTL_SECONDS, Rate, Slots, Token, mechanism_objects
from alcove.apps.acm.values import Attribute

PIN = b"123456"


@cache
def rsa_key(bits: int = 2048) -> KeyPair:
    return KeyPair(rsa.generate_private_key(65537, bits))


@cache
def ec_key(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> KeyPair:
    return KeyPair(ec.generate_private_key(curve()))


def certificate(key: KeyPair, name: str = "localhost", issuer: KeyPair | None = None) -> x509.Certificate:
    """A certificate for a name, by another key or by its own."""
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign((issuer or key).private, hashes.SHA256())
    )


def token(
    label: str,
    keys: Sequence[KeyPair],
    *,
    profile: Profile = Profile.FULL,
    clock: Callable[[], float] = time.monotonic,
    rate: float | None = None,
) -> Token:
    """A token with these keys (id 1, 2, …; label key1, key2, …) and a certificate of each."""
    objects: list[TokenObject] = []
    for number, key in enumerate(keys, 1):
        objects += key_objects(key, bytes([number]), f"key{number}", profile)
        objects += certificate_objects([certificate(key)], bytes([number]), number - 1)
    everything = (*objects, *mechanism_objects(profile))
    return Token(label, PIN, everything, profile, clock() + TTL_SECONDS, Rate(rate, clock))


@contextmanager
def serving(slots: Slots, address: str) -> Iterator[list[str]]:
    """A server in a thread; yields its log."""
    log: list[str] = []
    started = threading.Event()
    listener = listen(address)
    loop = asyncio.new_event_loop()

    async def run() -> None:
        server = P11Server(slots, log.append)
        accepting = await server.start(listener)
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            accepting.close()
            server.close()

    def body() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner, suppress(asyncio.CancelledError):
            runner.run(run())

    thread = threading.Thread(target=body)
    thread.start()
    started.wait()
    try:
        yield log
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join()


def unix_address(directory: Path) -> str:
    return f"unix:path={directory / 'p11.sock'}"


class Peer:
    """A client in the same process: calls by name, and what comes back."""

    def __init__(self, slots: Slots, *, new: bool = False, initialize: bool = True) -> None:
        self._client, self._new = Client(slots), new
        if initialize:
            self("C_Initialize", message.HANDSHAKE, 0, b"\0")

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The results; one alone without its tuple.

        Raises:
            Refused: The call failed.
        """
        call = BY_NAME[name]
        body = self._client.handle(message.pack_request(call, arguments, new=self._new), new=self._new)
        results = message.parse_response(body, call)
        return results[0] if len(results) == 1 else results

    def opened(self, slot: int = 0, pin: bytes | None = PIN) -> int:
        """A session, with a login unless the PIN is None."""
        handle: int = self("C_OpenSession", slot, 4)
        if pin is not None:
            self("C_Login", handle, 1, pin)
        return handle

    def find(self, session: int, *template: Attribute) -> list[int]:
        """The handles of what a search finds."""
        self("C_FindObjectsInit", session, template)
        found: list[int] = []
        while some := self("C_FindObjects", session, 3):
            found += some
        self("C_FindObjectsFinal", session)
        return found

    def key(self, session: int, kind: Cko, number: int = 1) -> int:
        """The handle of a key."""
        (handle,) = self.find(session, Attribute(Cka.CLASS, int(kind)), Attribute(Cka.ID, bytes([number])))
        return handle


@contextmanager
def refused(ckr: Ckr) -> Iterator[None]:
    """What happens in here must be answered with this return value."""
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.ckr is ckr, caught.value
