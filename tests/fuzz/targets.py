"""Every fuzz target with the inputs that a run starts from: the vectors, and a few bytes of each protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.fuzz import acm, attestation, devices, enclave, images, kms, protocols
from vectors.eif.keys import Identity
from vectors.vectorfile import load

from alcove.codec import cbor
from alcove.devices.nsm import messages as nsm
from alcove.devices.vhost_user import messages as vhost
from alcove.devices.vsock.packet import Header, Op
from alcove.image.signing import certificate_der

VECTORS = Path(__file__).parent.parent.parent / "vectors" / "eif"
MAX_SEED = 1 << 16  # a fuzzer's inputs are small


@dataclass(frozen=True, slots=True)
class Target:
    """What a fuzzer calls, and the kinds of vectors, or the bytes, that it begins with."""

    run: Callable[[bytes], None]
    kinds: tuple[str, ...] = ()
    others: Callable[[], Iterable[bytes]] = tuple

    def seeds(self) -> list[bytes]:
        """The first inputs."""
        return [payload for kind in self.kinds for payload in _payloads(kind)] + list(self.others())


@cache
def _payloads(kind: str) -> tuple[bytes, ...]:
    return tuple(vector.payload for vector in load(VECTORS / kind) if len(vector.payload) <= MAX_SEED)


def _nsm() -> Iterable[bytes]:
    requests: tuple[nsm.Request, ...] = (
        nsm.DescribePCR(0),
        nsm.ExtendPCR(16, b"x"),
        nsm.LockPCR(16),
        nsm.LockPCRs(17),
        nsm.DescribeNSM(),
        nsm.GetRandom(),
        nsm.Attestation(b"data", b"nonce", None),
    )
    yield from (nsm.encode_request(request) for request in requests)
    yield nsm.encode_response(nsm.PcrDescribed(lock=True, data=bytes(48)))
    yield nsm.encode_response(nsm.Failed(nsm.ErrorCode.INVALID_INDEX))


def _vhost_user() -> Iterable[bytes]:
    table = vhost.pack_regions((vhost.RegionSpec(0, 1 << 20, 1 << 40, 0),))
    yield vhost.pack_message(vhost.Request.SET_MEM_TABLE, table)
    yield b"".join(vhost.pack_message(request, bytes(8)) for request in vhost.Request)
    yield vhost.pack_message(vhost.Request.GET_CONFIG, bytes(4) + (8).to_bytes(4, "little") + bytes(12))


def _vsock() -> Iterable[bytes]:
    ops = (Op.REQUEST, Op.RW, Op.CREDIT_REQUEST, Op.SHUTDOWN, Op.RST)
    yield b"".join(Header(16, 3, 1000, 9000, 0, 1, op, 0, 1 << 16, 0).pack() for op in ops)


def _documents() -> Iterable[bytes]:
    fields = {"module_id": "i-0-enc0", "digest": "SHA384", "timestamp": 1, "pcrs": {0: bytes(48)}}
    chain = {"certificate": b"\x30\x00", "cabundle": [b"\x30\x00"], "public_key": None}
    payload = cbor.encode(fields | chain | {"user_data": None, "nonce": None})
    yield cbor.encode([bytes.fromhex("a1013822"), {}, payload, bytes(96)])


def _certificates() -> Iterable[bytes]:
    yield certificate_der(Identity().pem)


TARGETS = {
    "acm-provisioning": Target(acm.provisioning, others=acm.orders),
    "acm-settings": Target(acm.settings, others=acm.files),
    "attestation": Target(attestation.whole, others=attestation.documents),
    "attestation-crl": Target(attestation.lists, others=attestation.revoked),
    "attestation-leaf": Target(attestation.leaf, others=attestation.leaves),
    "attestation-payload": Target(attestation.payload, others=attestation.payloads),
    "attestation-policy": Target(attestation.policy, others=attestation.policies),
    "boot": Target(images.boot, ("image",)),
    "cbor": Target(protocols.cbor_item, ("signature", "payload")),
    "certificate": Target(protocols.certificate, others=_certificates),
    "diff": Target(images.eif_diff, ("image",)),
    "document": Target(protocols.document, others=_documents),
    "eif": Target(images.eif, ("image",)),
    "enclave-answer": Target(enclave.answer, others=enclave.answers),
    "enclave-envelope": Target(enclave.envelope, others=enclave.envelopes),
    "enclave-kmstool": Target(enclave.kmstool, others=enclave.messages),
    "enclave-request": Target(enclave.request, others=enclave.requests),
    "gunzip": Target(images.gunzip, others=images.gzip_files),
    "kms-ciphertext": Target(kms.ciphertext, others=kms.ciphertexts),
    "kms-parameters": Target(kms.parameters, others=kms.bodies),
    "kms-policy": Target(kms.policy, others=kms.policies),
    "kms-recipient": Target(kms.recipient, others=attestation.documents),
    "kms-signature": Target(kms.signature, others=kms.requests),
    "layers": Target(images.layers, ("layers",)),
    "metadata": Target(images.metadata, ("metadata",)),
    "nsm": Target(protocols.nsm, others=_nsm),
    "p11-kit": Target(acm.request, others=acm.requests),
    "p11-kit-conversation": Target(acm.conversation, others=acm.conversations),
    "ramdisk": Target(images.ramdisk, ("cpio",)),
    "rootfs": Target(images.rootfs, ("cpio",)),
    "signature": Target(images.signature, ("signature", "payload")),
    "tar": Target(images.tar, ("layers",)),
    "vhost-user": Target(protocols.vhost_user, others=_vhost_user),
    "vhost-user-server": Target(devices.server, others=devices.conversations),
    "virtqueue": Target(devices.virtqueue, others=devices.rings),
    "vsock": Target(protocols.vsock, others=_vsock),
}
