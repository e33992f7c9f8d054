"""Fuzz targets of the ACM application: whatever a p11-kit client or an agent sends, the device answers or hangs up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from vectors.vectorfile import load

from alcove.apps.acm import message, rpc
from alcove.apps.acm.calls import BY_NAME
from alcove.apps.acm.client import Client
from alcove.apps.acm.cryptoki import Ckm, Refused
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.mechanisms import Profile
from alcove.apps.acm.message import Frame, FrameReader
from alcove.apps.acm.objects import key_objects
from alcove.apps.acm.provisioning import ImagePolicy, Provisioner
from alcove.apps.acm.settings import parse
from alcove.apps.acm.token import Rate, Slots, Token, mechanism_objects
from alcove.apps.acm.values import Attribute, Mechanism, PssParameters, Room
from alcove.errors import ProtocolError, UsageError
from alcove.sdk.errors import KmsError

VECTORS = Path(__file__).parent.parent.parent / "vectors" / "p11kit"
PIN = b"1234"
AT = datetime(2026, 6, 1, tzinfo=UTC)


def request(data: bytes) -> None:
    """A request is written again as the same bytes, in both encodings of mechanisms; the first byte picks one."""
    new, body = bool(data[:1] and data[0] & 1), data[1:]
    try:
        found = message.parse_request(body, new=new)
    except (ProtocolError, Refused):
        return
    if "fA" not in found.call.request:  # buffers within buffers are passed over
        assert message.pack_request(found.call, found.arguments, new=new) == body


@cache
def _objects() -> tuple[tuple[Profile, KeyPair], ...]:
    rsa_key = KeyPair(rsa.generate_private_key(65537, 1024))  # noqa: S505 - quick
    return (Profile.FULL, rsa_key), (Profile.TLS, KeyPair(ec.generate_private_key(ec.SECP256R1())))


@cache
def _secrets() -> tuple[bytes, ...]:
    (_, rsa_key), (_, ec_key) = _objects()
    numbers, scalar = rsa_key.private.private_numbers(), ec_key.private.private_numbers()
    parts = [numbers.d, numbers.p, numbers.q, scalar.private_value]  # type: ignore[union-attr]
    return tuple(part.to_bytes((part.bit_length() + 7) // 8) for part in parts)


def _device() -> Slots:
    slots = Slots(lambda: 0.0)
    for number, (profile, key) in enumerate(_objects()):
        objects = (*key_objects(key, b"\1", "k", profile), *mechanism_objects(profile))
        slots.add(Token(f"t{number}", PIN, objects, profile, 1.0, Rate(None, lambda: 0.0)))
    return slots


def conversation(data: bytes) -> None:
    """Any stream: each frame has one answer that a client can read, or the connection ends; no secret comes out."""
    reader, client = FrameReader(), Client(_device(), random=lambda size: b"\7" * size)
    with suppress(ProtocolError):
        for frame in reader.receive(data[:1] + _begun() + data[1:]):
            answer = client.handle(frame.body, new=(reader.version or 0) >= message.NEW_MECHANISMS)
            number = int.from_bytes(answer[:4])
            assert number in {0, int.from_bytes(frame.body[:4])}
            assert len(answer) <= message.MAX_BODY * 2
            assert not [secret for secret in _secrets() if secret in answer]


@cache
def _begun() -> bytes:
    """A session on each token, logged in, so that a fuzzer need not find the PIN."""
    calls: list[tuple[str, tuple[object, ...]]] = [("C_Initialize", (message.HANDSHAKE, 0, b"\0"))]
    for slot in (0, 1):
        calls += [("C_OpenSession", (slot, 4)), ("C_Login", (slot + 1, 1, PIN))]
    return b"".join(_frame(name, *arguments) for name, arguments in calls)


def _frame(name: str, *arguments: object) -> bytes:
    return Frame(1, message.pack_request(BY_NAME[name], arguments, new=False)).pack()


def provisioning(data: bytes) -> None:
    """Any bytes are a request that gets a reply in JSON, or a ProtocolError; nothing is added without KMS."""

    def refuse(_: object) -> object:
        raise KmsError("AccessDeniedException", "no", status=400)

    slots = Slots(lambda: 0.0)
    service = Provisioner(slots, ImagePolicy(), refuse, None, now=lambda: AT)  # type: ignore[arg-type]
    with suppress(ProtocolError):
        found = rpc.request_reader().receive(data)
        if found is not ...:
            reply = service.handle(found)
            assert reply.keys() <= {"Ok", "Err", "Detail"}
            assert rpc.reply_reader().receive(rpc.pack_reply(reply)) == reply
    assert slots.ids() == []


def settings(data: bytes) -> None:
    """Any text is settings, or a UsageError of one line."""
    try:
        parse(data.decode("utf-8", "replace"), run_directory=Path("/r"), state_directory=Path("/s"))
    except UsageError as error:
        assert "\n" not in error.message  # noqa: PT017 - no test of pytest's


def requests() -> Iterator[bytes]:
    """The vectors, for both encodings."""
    for vector in load(VECTORS):
        yield bytes([vector.get("mechanisms") == "new"]) + vector.payload


def conversations() -> Iterator[bytes]:
    """What real clients do: look, search, sign, verify, decrypt, digest."""
    key_template = (Attribute(0, 3),)
    pss = Mechanism(Ckm.RSA_PKCS_PSS, PssParameters(Ckm.SHA256, 2, 32))
    yield b"\0" + _frame("C_GetInfo") + _frame("C_GetSlotList", 1, 9) + _frame("C_GetTokenInfo", 0)
    yield b"\0" + _frame("C_FindObjectsInit", 1, key_template) + _frame("C_FindObjects", 1, 9)
    yield b"\0" + _frame("C_GetAttributeValue", 1, 1, (Room(0x120, 512), Room(0x123, None)))
    yield b"\0" + _frame("C_SignInit", 1, pss, 1) + _frame("C_Sign", 1, bytes(32), 512)
    yield b"\0" + _frame("C_SignInit", 2, Mechanism(Ckm.ECDSA), 1) + _frame("C_Sign", 2, bytes(32), 512)
    yield b"\0" + _frame("C_SignInit", 1, Mechanism(Ckm.SHA256_RSA_PKCS), 1) + _frame("C_SignUpdate", 1, b"x")
    yield b"\0" + _frame("C_VerifyInit", 1, Mechanism(Ckm.RSA_PKCS), 2) + _frame("C_Verify", 1, b"x", bytes(128))
    yield b"\0" + _frame("C_DecryptInit", 1, Mechanism(Ckm.RSA_PKCS), 1) + _frame("C_Decrypt", 1, bytes(128), 512)
    yield b"\0" + _frame("C_DigestInit", 1, Mechanism(Ckm.SHA256)) + _frame("C_Digest", 1, b"x", 64)


def orders() -> Iterator[bytes]:
    """Each request, well formed."""
    envelope = {"Kms": {"region": "r", "access_key_id": "a", "secret_access_key": "s", "session_token": ""}}
    key = {"encrypted_pem_b64": "QUFB", "id": 1, "label": "k", "cert_pem": None}
    token = {"label": "t", "pin": "1234", "envelope_key": envelope, "keys": [key]}
    named = {"Kms": envelope["Kms"] | {"key_id": "k"}}
    yield from map(
        rpc.pack_request,
        (
            "DescribeDevice",
            {"AddToken": {"token": token}},
            {"UpdateToken": {"label": "t", "pin": "1234", "token": token}},
            {"RefreshToken": {"label": "t", "pin": "1234", "envelope_key": envelope}},
            {"Alcove": {"CreateKey": {"label": "t", "domains": ["a.example"], "envelope_key": named}}},
            {"Alcove": {"AddToken": {"token": token | {"domains": ["a.example"], "rate": 5, "mechanisms": "tls"}}}},
        ),
    )


def files() -> Iterator[bytes]:
    """A small acm.yaml."""
    source = {"LocalCa": {"directory": "/ca", "domains": ["a.example"]}}
    target = {"Conf": {"path": "/x", "user": "nginx"}}
    token = {"label": "t", "source": source, "target": target}
    yield json.dumps({"enclave": {"cpu_count": 2, "memory_mib": 256}, "tokens": [token]}).encode()
