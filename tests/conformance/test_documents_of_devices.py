"""Documents as a guest's driver gets them from the device: the platform's bytes (attestation.md §1, §2, §4).

The whole way is real: authority, signer, module, back-end on a socket, virtqueues; the guest is the fake one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import cbor2
import pytest
from tests.unit.devices.conftest import LoopThread, listen

from alcove.attestation import ChainCache, NoDebugMode, Root, VerifiedAttestation, verify
from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority
from alcove.devices.nsm import messages as nsm
from alcove.devices.nsm.backend import NsmBackend
from alcove.devices.nsm.module import NsmModule
from alcove.testing.fake_drivers import FakeNsmDriver
from alcove.testing.fake_guest import FakeGuest

INSTANCE = "i-0123456789abcdef0"
ENCLAVE = f"{INSTANCE}-enc0123456789abcdef"
PCRS = {index: bytes((index + 1,)) * 48 for index in (0, 1, 2, 4)}
KEYS = ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key", "user_data", "nonce"]
HEAD = bytes.fromhex("8444a1013822a059")


class Enclave:
    """A guest with a module whose documents are signed by a new authority."""

    def __init__(self, driver: FakeNsmDriver, root: Root) -> None:
        self.driver = driver
        self.root = root

    def ask(self, request: nsm.Request) -> nsm.Response:
        """One request of the driver."""
        return nsm.decode_response(self.driver.request(nsm.encode_request(request)))

    def document(self, **fields: bytes | None) -> bytes:
        """A document over these fields."""
        given = {"user_data": None, "nonce": None, "public_key": None} | fields
        answer = self.ask(nsm.Attestation(**given))
        assert isinstance(answer, nsm.Attested)
        return answer.document

    def verified(self, document: bytes) -> VerifiedAttestation:
        """As a verifier with this root sees it."""
        return verify(document, roots=[self.root], policy=NoDebugMode(), at=datetime.now(UTC))


@pytest.fixture
def enclave(tmp_path: Path) -> Iterator[Enclave]:
    """The enclave, started."""
    authority = Authority.create(tmp_path / "ca")
    parent = authority.parent_identity(INSTANCE, "eu-central-1", datetime.now(UTC))
    attester = Attester(parent, ENCLAVE)

    def attest(pcrs: object, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None) -> bytes:
        return attester.document(
            pcrs,  # type: ignore[arg-type]  # what the module passes on
            user_data=user_data,
            nonce=nonce,
            public_key=public_key,
            now=datetime.now(UTC),
        )

    loop = LoopThread()
    listener = listen(tmp_path / "nsm.sock")
    module = NsmModule(ENCLAVE, PCRS, attest, os.urandom)
    backend = loop.run(lambda: NsmBackend(loop.loop, listener, module, lambda _: None))
    with FakeGuest(str(tmp_path / "nsm.sock")) as guest:
        guest.realize()
        guest.start()
        yield Enclave(FakeNsmDriver(guest), authority.root)
    loop.run(backend.close)
    listener.close()
    loop.close()


def payload_of(document: bytes) -> bytes:
    """The payload, found as a verifier that reads at fixed offsets finds it (attestation.md §7)."""
    assert document[:8] == HEAD
    length = int.from_bytes(document[8:10])
    assert document[10 + length : 12 + length] == b"\x58\x60"
    assert len(document) == 12 + length + 96
    return document[10 : 10 + length]


def test_the_envelope_is_the_platforms(enclave: Enclave) -> None:
    """Untagged, ES384 in four bytes, an empty map, two-byte length, 96 bytes of signature."""
    document = enclave.document()
    payload = payload_of(document)
    assert cbor2.loads(document) == [bytes.fromhex("a1013822"), {}, payload, document[-96:]]
    assert enclave.verified(document).document.module_id == ENCLAVE


def test_the_payload_is_the_platforms(enclave: Enclave) -> None:
    """Nine keys in order, 39 characters of name, eight bytes of time, sixteen locked registers, nulls."""
    payload = payload_of(enclave.document())
    fields = cbor2.loads(payload)
    assert payload[0] == 0xA9
    assert list(fields) == KEYS
    assert payload.startswith(
        b"\xa9\x69module_id\x78\x27" + ENCLAVE.encode() + b"\x66digest\x66SHA384\x69timestamp\x1b"
    )
    assert re.fullmatch(r"i-[0-9a-f]{17}-enc[0-9a-f]{16}", fields["module_id"])
    registers = b"".join(bytes((index, 0x58, 0x30)) + PCRS.get(index, bytes(48)) for index in range(16))
    assert b"\x64pcrs\xb0" + registers + b"\x6bcertificate\x59" in payload
    assert b"\x68cabundle\x84\x59" in payload
    assert payload.endswith(b"\x6apublic_key\xf6\x69user_data\xf6\x65nonce\xf6")
    assert abs(fields["timestamp"] / 1000 - datetime.now(UTC).timestamp()) < 60
    sizes = [len(entry) for entry in (*fields["cabundle"], fields["certificate"])]
    assert len(sizes) == 5
    assert max(sizes) < 1024
    assert min(sizes) > 255  # so that each begins with 59 and two bytes


def test_only_locked_registers_appear(enclave: Enclave) -> None:
    """The application's own come when they are locked, in order, with heads of two bytes from 24 on."""
    for index in (16, 24, 20):
        enclave.ask(nsm.ExtendPCR(index, b"x"))
    assert len(enclave.verified(enclave.document()).document.pcrs) == 16
    for index in (24, 16):
        enclave.ask(nsm.LockPCR(index))
    document = enclave.document()
    assert list(enclave.verified(document).document.pcrs) == [*range(17), 24]
    payload = payload_of(document)
    assert b"\x64pcrs\xb2\x00\x58\x30" in payload
    assert b"\x18\x18\x58\x30" in payload


def test_fields_come_back_as_they_were_given(enclave: Enclave) -> None:
    """Each of the three, empty and as long as a verifier allows."""
    fields = {"user_data": b"", "nonce": b"n" * 1024, "public_key": b"k" * 1024}
    document = enclave.verified(enclave.document(**fields)).document
    assert {name: getattr(document, name) for name in fields} == fields


def test_documents_of_one_enclave_share_a_chain(enclave: Enclave) -> None:
    """The leaf is reused, so a verifier's cache serves all documents but the first."""
    cache = ChainCache()
    documents = [enclave.document(nonce=bytes((number,))) for number in range(3)]
    for document in documents:
        verify(document, roots=[enclave.root], policy=NoDebugMode(), at=datetime.now(UTC), cache=cache)
    assert len(cache) == 2
    assert len({bytes(cbor2.loads(payload_of(document))["certificate"]) for document in documents}) == 1
