"""Carries out provisioning requests: keys from KMS into tokens, tokens into slots (acm.md §3, §4)."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from alcove.apps.acm import certificates, sealing
from alcove.apps.acm.client import MANUFACTURER, MODEL, serial
from alcove.apps.acm.keypair import KeyPair, PrivateKey
from alcove.apps.acm.objects import TokenObject, certificate_objects, key_objects
from alcove.apps.acm.orders import (
    Denied,
    Envelope,
    KeyOrder,
    TokenOrder,
    parse_access,
    parse_birth,
    parse_envelope,
    parse_token,
    unwrap,
)
from alcove.apps.acm.sealing import Kms
from alcove.apps.acm.token import TTL_SECONDS, Rate, Slots, Token, mechanism_objects
from alcove.errors import AlcoveError, InputError, UsageError
from alcove.sdk.kms import UNSAFE_ANY_KEY, AnyKey

_LONGEST_CN: Final = 64  # RFC 5280 appendix A: ub-common-name


class Attester(Protocol):
    """What makes attestation documents; `Nsm` does."""

    def attestation(self, *, user_data: bytes | None = None) -> bytes:
        """A fresh document."""


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What this image takes; it is in the image, so it is measured.

    Attributes:
        kms_keys: The ARNs of the KMS keys that may have encrypted; None takes any, and then the parent chooses.
        plain_keys: Whether keys come in clear, which is for trying out.
        full_profile: Whether tokens may offer more than TLS needs.
    """

    kms_keys: tuple[str, ...] | None = None
    plain_keys: bool = False
    full_profile: bool = False


class Provisioner:
    """The provisioning service; one request at a time.

    Args:
        slots: The device.
        policy: What the image takes.
        connect: Makes a KMS client.
        attester: Makes documents.
        now: The time, aware.
        atomically: Runs a function between two requests of the device's clients.
    """

    def __init__(
        self,
        slots: Slots,
        policy: ImagePolicy,
        connect: Callable[[Envelope], Kms],
        attester: Attester,
        *,
        now: Callable[[], datetime],
        atomically: Callable[[Callable[[], Any]], Any] = lambda function: function(),
    ) -> None:
        self._slots, self._policy, self._connect = slots, policy, connect
        self._attester, self._now, self._atomically = attester, now, atomically
        self._orders: dict[Token, TokenOrder] = {}
        self._operations: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "AddToken": self._add_token,
            "DescribeDevice": self._describe_device,
            "DescribeToken": self._describe_token,
            "RefreshToken": self._refresh_token,
            "UpdateToken": self._update_token,
            "RemoveToken": self._remove_token,
            "CreateKey": self._create_key,
            "CountUses": self._count_uses,
        }

    def handle(self, request: Any) -> dict[str, Any]:
        """The reply to a request."""
        ours = False
        try:
            name, members, ours = unwrap(request)
            return {"Ok": self._operations.get(name, _unknown)(members)}
        except Denied as denied:
            return {"Err": denied.name} | ({"Detail": denied.message} if ours else {})

    def _add_token(self, members: Mapping[str, Any]) -> Any:
        order = parse_token(members.get("token"))
        if self._atomically(lambda: self._slots.labelled(order.label)) is not None:
            raise Denied("TokenLabelInUse", f"there is a token {order.label}")
        if self._atomically(self._slots.free) == 0:
            raise Denied("TooManyTokens", "no slot is free")
        token = self._make(order)
        try:
            self._atomically(lambda: self._slots.add(token))
        except UsageError as error:
            raise Denied("TokenLabelInUse", error.message) from None
        self._remember(token, order)
        return "None"

    def _update_token(self, members: Mapping[str, Any]) -> Any:
        slot, old = self._accessed(members)
        order = parse_token(members.get("token"), label=old.label, pin=old.pin)
        token = self._make(order)
        token.uses = old.uses
        self._atomically(lambda: self._slots.replace(slot, token))
        self._remember(token, order)
        return "None"

    def _refresh_token(self, members: Mapping[str, Any]) -> Any:
        """Decrypt the first key again: as long as KMS allows that, the token lives on."""
        _, token = self._accessed(members)
        order = self._orders[token]
        envelope = parse_envelope(members.get("envelope_key"))
        key = self._key(order, order.keys[0], envelope)
        there = next(found.key for found in token.objects if found.key is not None)
        if not hmac.compare_digest(_private_bytes(key.private), _private_bytes(there.private)):
            raise Denied("TokenRefreshFailed", "KMS gave another key than before")
        token.expires = self._slots.clock() + TTL_SECONDS
        return "None"

    def _remove_token(self, members: Mapping[str, Any]) -> Any:
        slot, token = self._accessed(members)
        self._atomically(lambda: self._slots.remove(slot))
        self._orders.pop(token, None)
        return "None"

    def _describe_device(self, _: Mapping[str, Any]) -> Any:
        described = [
            {"label": token.label, "slot_id": slot, "ttl_secs": self._ttl(token)}
            for slot, token in self._tokens().items()
        ]
        return {"DeviceDescription": {"free_slot_count": self._slots.free(), "tokens": described}}

    def _count_uses(self, _: Mapping[str, Any]) -> Any:
        """How often each token's keys signed or decrypted."""
        return {"Uses": {token.label: token.uses for token in self._tokens().values()}}

    def _tokens(self) -> dict[int, Token]:
        there: dict[int, Token] = self._atomically(
            lambda: {slot: self._slots.token(slot) for slot in self._slots.ids()}
        )
        return there

    def _describe_token(self, members: Mapping[str, Any]) -> Any:
        slot, token = self._accessed(members)
        keys = [
            {"label": key.label, "id": key.id, "uri": uri(slot, token.label, key)} for key in self._orders[token].keys
        ]
        common = {"label": token.label, "slot_id": slot, "ttl_secs": self._ttl(token)}
        return {"TokenDescription": common | {"keys": keys}}

    def _create_key(self, members: Mapping[str, Any]) -> Any:
        """A key that is born here: its request for a certificate, the proof of its birth, and its ciphertext."""
        order = parse_birth(members)
        key_id = self._allowed(order.envelope)
        if isinstance(key_id, AnyKey):
            raise Denied("InternalError", "a key is born under a KMS key that is named")
        try:
            private = sealing.make_key(order.key_type)
            sealed = sealing.seal(private, order.label, order.domains, key_id, self._connect(order.envelope))
            request = signing_request(private, order.domains)
            digest = hashlib.sha256(request.public_bytes(Encoding.DER)).digest()
            document = self._attester.attestation(user_data=digest)
        except UsageError as error:
            raise Denied("InternalError", error.message) from None
        except AlcoveError as error:
            raise Denied("KmsDecryptFailed", str(error)) from None
        return {
            "KeyCreated": {
                "sealed_key": sealed,
                "csr_pem": request.public_bytes(Encoding.PEM).decode(),
                "document_b64": base64.b64encode(document).decode(),
            }
        }

    def _make(self, order: TokenOrder) -> Token:
        """A token with every key in it."""
        if order.profile.value != "tls" and not self._policy.full_profile:
            raise Denied("TokenProvisioningFailed", "this image serves TLS alone: mechanisms must be tls")
        objects: list[TokenObject] = []
        count = 0
        for wanted in order.keys:
            key = self._key(order, wanted, order.envelope)
            objects += key_objects(key, bytes([wanted.id]), wanted.label, order.profile)
            if wanted.certificate is not None:
                chain = self._chain(order, wanted, key)
                objects += certificate_objects(chain, bytes([wanted.id]), count)
                count += len(chain)
        everything = (*objects, *mechanism_objects(order.profile))
        expires = self._slots.clock() + TTL_SECONDS
        return Token(order.label, order.pin, everything, order.profile, expires, Rate(order.rate, self._slots.clock))

    def _chain(self, order: TokenOrder, wanted: KeyOrder, key: KeyPair) -> Sequence[x509.Certificate]:
        try:
            chain = certificates.read_chain(wanted.certificate or "")
            certificates.check_chain(chain, key, self._now(), order.domains)
        except InputError as error:
            raise Denied("TokenProvisioningFailed", error.message) from None
        return chain

    def _key(self, order: TokenOrder, wanted: KeyOrder, envelope: Envelope | None) -> KeyPair:
        """A key in clear, by the way that the order says.

        Raises:
            Denied: KMS refuses, the image does not take such keys, or it is none.
        """
        if wanted.plain is not None:
            if not self._policy.plain_keys:
                raise Denied("TokenProvisioningFailed", "this image takes no keys in clear")
            return _decoded(lambda: KeyPair.from_pem(str(wanted.plain).encode()))
        if envelope is None:
            raise Denied("KmsDecryptFailed", "the key is encrypted, and envelope_key is missing")
        key_id = self._allowed(envelope)
        try:
            kms = self._connect(envelope)
            if wanted.sealed is not None:
                pinned = None if isinstance(key_id, AnyKey) else key_id
                return sealing.unseal(wanted.sealed, order.label, order.domains or (), pinned, kms)
            context = None
            if wanted.bound:
                context = sealing.binding(order.label, order.domains or (), str(envelope.key_id))
            pem = kms.decrypt(wanted.encrypted or b"", key_id=key_id, encryption_context=context)
        except AlcoveError as error:
            raise Denied("KmsDecryptFailed", str(error)) from None
        return _decoded(lambda: KeyPair.from_pem(pem))

    def _allowed(self, envelope: Envelope) -> str | AnyKey:
        """The KMS key that must have encrypted, which has to be one that the image names, if it names any."""
        pinned = self._policy.kms_keys
        if pinned is None:
            return envelope.key_id or UNSAFE_ANY_KEY
        if envelope.key_id is None and len(pinned) == 1:
            return pinned[0]
        if envelope.key_id in pinned:
            return envelope.key_id
        raise Denied("KmsDecryptFailed", f"this image does not take keys under {envelope.key_id or 'an unnamed key'}")

    def _accessed(self, members: Mapping[str, Any]) -> tuple[int, Token]:
        label, pin = parse_access(members)
        found: tuple[int, Token] | None = self._atomically(lambda: self._slots.labelled(label))
        if found is None:
            raise Denied("TokenNotFound", f"there is no token {label}")
        if not found[1].accepts(pin):
            raise Denied("AccessDenied", "that is not the PIN")
        return found

    def _ttl(self, token: Token) -> int:
        return max(0, int(token.expires - self._slots.clock()))

    def _remember(self, token: Token, order: TokenOrder) -> None:
        """The order of each token that is in a slot, for its refresh."""
        there = set(self._tokens().values())
        self._orders = {old: kept for old, kept in self._orders.items() if old in there} | {token: order}


def _unknown(_: Mapping[str, Any]) -> Any:
    raise Denied("InternalError", "there is no such request")


def uri(slot: int, label: str, key: KeyOrder) -> str:
    """Where a key is (RFC 7512), in AWS's form."""
    token, name = (quote(text, safe="-._~!$'()*+, ") for text in (label, key.label))
    return (
        f"pkcs11:model={MODEL};manufacturer={MANUFACTURER};serial={serial(slot)};token={token};"
        f"id=%{key.id:02x};object={name};type=private"
    )


def signing_request(private: PrivateKey, domains: Sequence[str]) -> x509.CertificateSigningRequest:
    """A request for a certificate (PKCS#10) for these names."""
    common = [x509.NameAttribute(NameOID.COMMON_NAME, domains[0])] if len(domains[0]) <= _LONGEST_CN else []
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in domains])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(common))
    return builder.add_extension(names, critical=False).sign(private, hashes.SHA256())


def _decoded(read: Callable[[], KeyPair]) -> KeyPair:
    try:
        return read()
    except InputError as error:
        raise Denied("TokenKeyDecodingFailed", error.message) from None


def _private_bytes(private: PrivateKey) -> bytes:
    return private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
