"""Provisioning as AWS's client does it, with a real KMS; keys that are born here; and what a hostile parent tries."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.apps.acm_device import Peer, certificate, ec_key, rsa_key
from tests.unit.apps.acm_kms import PIN, Parts, aws_key, chain_pem, parts, pem

from alcove.apps.acm.cryptoki import Cka, Ckm, Cko
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.provisioning import Provisioner
from alcove.apps.acm.token import TTL_SECONDS, Slots
from alcove.apps.acm.values import Attribute, Mechanism, Room

OK = {"Ok": "None"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with parts(tmp_path_factory.mktemp("kms")) as found:
        yield found


@pytest.fixture
def service(made: Parts) -> tuple[Provisioner, Slots]:
    return made.service()


def add(service: Provisioner, token: dict[str, Any]) -> dict[str, Any]:
    return service.handle({"AddToken": {"token": token}})


def ours(service: Provisioner, request: Any) -> tuple[Any, str]:
    """The error of a request as our agent sends it, and its sentence."""
    reply = service.handle({"Alcove": request})
    assert reply.keys() == {"Err", "Detail"}, reply
    return reply["Err"], reply["Detail"]


def signs(slots: Slots, key: KeyPair) -> bool:
    """Whether the token in slot 0 has this key, and signs."""
    peer = Peer(slots)
    session = peer.opened(0, PIN.encode())
    handle = peer.key(session, Cko.PRIVATE_KEY)
    kind = Ckm.ECDSA if key.type == 3 else Ckm.SHA256_RSA_PKCS
    peer("C_SignInit", session, Mechanism(kind), handle)
    assert peer("C_Sign", session, bytes(32), 512)
    ((point,), _) = peer("C_GetAttributeValue", session, handle, (Room(Cka.PUBLIC_KEY_INFO, 999),))
    from cryptography.hazmat.primitives.serialization import PublicFormat  # noqa: PLC0415

    return bool(point.value == key.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def born(made: Parts, service: Provisioner, label: str = "web", *names: str) -> dict[str, str]:
    """A key that was born in the enclave."""
    request = {"label": label, "domains": list(names) or ["www.example"], "key_type": "ec-p256"}
    reply = service.handle({"CreateKey": request | {"envelope_key": made.envelope(key_id=made.key_id)}})
    created: dict[str, str] = reply["Ok"]["KeyCreated"]
    return created


def signed(created: dict[str, str], *names: str) -> str:
    """A certificate for a born key, from an authority."""
    request = x509.load_pem_x509_csr(created["csr_pem"].encode())
    authority = certificate(ec_key(), "authority.example")
    now = datetime.now(UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(request.subject)
        .issuer_name(authority.subject)
        .public_key(request.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names or ("www.example",)]), False)
        .sign(ec_key().private, hashes.SHA256())
    )
    return chain_pem(leaf, authority)


def test_aws_s_client_is_served(made: Parts, service: tuple[Provisioner, Slots]) -> None:
    """acm.md §4: add, describe, refresh, update, remove, in AWS's forms; the key was decrypted with attestation."""
    provisioner, slots = service
    key = aws_key(made.encrypted(ec_key()), cert_pem=chain_pem(certificate(ec_key())))
    access = {"label": "web", "pin": PIN}
    assert add(provisioner, made.token(keys=[key])) == OK
    assert made.kms.records()[-1]["eventName"] == "Decrypt"
    assert signs(slots, ec_key())
    device = {"free_slot_count": 4095, "tokens": [{"label": "web", "slot_id": 0, "ttl_secs": 172800}]}
    assert provisioner.handle("DescribeDevice") == {"Ok": {"DeviceDescription": device}}
    uri = "pkcs11:model=p11ne-token;manufacturer=Amazon;serial=EVT00;token=web;id=%01;object=acm-key;type=private"
    keys = [{"label": "acm-key", "id": 1, "uri": uri}]
    described = {"label": "web", "slot_id": 0, "ttl_secs": 172800, "keys": keys}
    assert provisioner.handle({"DescribeToken": access}) == {"Ok": {"TokenDescription": described}}
    made.clock.now += 1000
    assert provisioner.handle({"RefreshToken": access | {"envelope_key": made.envelope()}}) == OK
    assert provisioner.handle("DescribeDevice")["Ok"]["DeviceDescription"]["tokens"][0]["ttl_secs"] == 172800
    other = aws_key(made.encrypted(rsa_key()))
    token = made.token(label="ignored", pin="ignored!", keys=[other])
    assert provisioner.handle({"UpdateToken": access | {"token": token}}) == OK
    assert signs(slots, rsa_key())
    assert provisioner.handle({"RemoveToken": access}) == OK
    assert slots.ids() == []


def test_a_token_that_kms_does_not_refresh_is_gone(made: Parts) -> None:
    """When the image may no longer decrypt, RefreshToken fails, and after 48 hours the key is out of the device."""
    provisioner, slots = made.service()
    assert add(provisioner, made.token(keys=[aws_key(made.encrypted(ec_key()))])) == OK
    made.nsm.boot({0: b"\1" * 48})
    try:
        request = {"RefreshToken": {"label": "web", "pin": PIN, "envelope_key": made.envelope()}}
        assert provisioner.handle(request) == {"Err": "KmsDecryptFailed"}
        assert "AccessDenied" in ours(provisioner, request)[1]
    finally:
        made.nsm.boot()
    made.clock.now += TTL_SECONDS
    assert slots.ids() == []


def test_another_image_gets_no_key(made: Parts) -> None:
    """KMS refuses to decrypt for another PCR0, and to make a data key; the agent is told KMS's reason."""
    provisioner, slots = made.service()
    encrypted = aws_key(made.encrypted(ec_key()))
    made.nsm.boot({0: b"\2" * 48})
    try:
        assert add(provisioner, made.token(keys=[encrypted])) == {"Err": "KmsDecryptFailed"}
        birth = {"label": "web", "domains": ["a.example"], "envelope_key": made.envelope(key_id=made.key_id)}
        assert ours(provisioner, {"CreateKey": birth})[0] == "KmsDecryptFailed"
    finally:
        made.nsm.boot()
    assert slots.ids() == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"label": ""}, {"InvalidArgs": "LabelTooShort"}),
        ({"label": "x" * 33}, {"InvalidArgs": "LabelTooLong"}),
        ({"pin": "123"}, {"InvalidArgs": "PinTooShort"}),
        ({"pin": "x" * 65}, {"InvalidArgs": "PinTooLong"}),
        ({"keys": []}, "EmptyToken"),
        ({"keys": [aws_key("AAAA"), aws_key("AAAA", label="b")]}, {"InvalidArgs": {"DuplicateKeyId": 1}}),
        ({"keys": [aws_key("AAAA"), aws_key("AAAA", id=2)]}, {"InvalidArgs": {"DuplicateKeyLabel": "acm-key"}}),
        ({"keys": [aws_key("AAAA", id=256)]}, "InternalError"),
        ({"keys": [aws_key("no base64!")]}, "InternalError"),
        ({"keys": [aws_key("AAAA", sealed_key="{}")]}, "InternalError"),
        ({"keys": [aws_key("AAAA")]}, "KmsDecryptFailed"),
        ({"keys": [aws_key("AAAA")], "envelope_key": None}, "KmsDecryptFailed"),
        ({"keys": [aws_key("AAAA")], "mechanisms": "all"}, "InternalError"),
        ({"keys": [aws_key("AAAA")], "rate": -1}, "InternalError"),
        ({"keys": [{"pem": "x", "id": 1, "label": "k"}]}, "TokenProvisioningFailed"),
        ({"keys": [aws_key("AAAA")], "domains": ["under score"]}, "InternalError"),
    ],
)
def test_a_wrong_token_is_denied(
    made: Parts, service: tuple[Provisioner, Slots], change: dict[str, Any], error: Any
) -> None:
    """AWS's names of the errors, and nothing is added."""
    assert add(service[0], made.token(**change)) == {"Err": error}
    assert service[1].ids() == []


def test_tokens_are_told_apart(made: Parts, service: tuple[Provisioner, Slots]) -> None:
    """One label is one token; a wrong PIN and an unknown label are two errors; the others go on."""
    provisioner, slots = service
    token = made.token(keys=[aws_key(made.encrypted(ec_key()))])
    assert add(provisioner, token) == OK
    assert add(provisioner, token) == {"Err": "TokenLabelInUse"}
    for name in ("DescribeToken", "RemoveToken", "RefreshToken"):
        assert provisioner.handle({name: {"label": "web", "pin": "wrong"}}) == {"Err": "AccessDenied"}
        assert provisioner.handle({name: {"label": "other", "pin": PIN}}) == {"Err": "TokenNotFound"}
    assert signs(slots, ec_key())


@pytest.mark.parametrize("request_", ["Nothing", {}, {"AddToken": 1}, {"A": {}, "B": {}}, [], None, {"Alcove": 5}])
def test_what_is_no_request_is_an_internal_error(service: tuple[Provisioner, Slots], request_: Any) -> None:
    """AWS has no other name for it."""
    assert service[0].handle(request_)["Err"] == "InternalError"


def test_what_kms_decrypts_must_be_a_key(made: Parts, service: tuple[Provisioner, Slots]) -> None:
    """A ciphertext of something else is TokenKeyDecodingFailed."""
    encrypted = made.kms.encrypt(made.key_id, b"no key at all")
    assert add(service[0], made.token(keys=[aws_key(encrypted)])) == {"Err": "TokenKeyDecodingFailed"}


def test_certificates_are_checked(made: Parts, service: tuple[Provisioner, Slots]) -> None:
    """Another key's, a chain out of order, an expired one, other names: a plain sentence each, and no token."""
    encrypted = made.encrypted(ec_key())
    old = datetime.now(UTC) - timedelta(days=9)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([]))
    expired = (
        builder.public_key(ec_key().public)
        .serial_number(1)
        .not_valid_before(old)
        .not_valid_after(old + timedelta(days=1))
        .sign(ec_key().private, hashes.SHA256())
    )
    root = certificate(rsa_key(), "root.example")
    leaf = certificate(ec_key(), "www.example")
    cases = {
        chain_pem(root): "the certificate belongs to another key",
        chain_pem(leaf, root): "the chain is out of order: certificate 2 did not sign certificate 1",
        chain_pem(expired): "a certificate expired on",
        chain_pem(certificate(ec_key(), "evil.example")): "for evil.example, and the key is for www.example",
        "rubbish": "not PEM",
    }
    for text, sentence in cases.items():
        token = made.token(keys=[aws_key(encrypted, cert_pem=text)], domains=["www.example"])
        error, detail = ours(service[0], {"AddToken": {"token": token}})
        assert error == "TokenProvisioningFailed"
        assert sentence in detail
    assert service[1].ids() == []


def test_a_born_key_is_restored_after_a_restart(made: Parts) -> None:
    """CSR, certificate, token; then another start of the same image opens the same ciphertext: the same key signs."""
    created = born(made, made.service()[0])
    request = x509.load_pem_x509_csr(created["csr_pem"].encode())
    assert request.is_signature_valid
    for _ in range(2):
        provisioner, slots = made.service()
        key = {"sealed_key": created["sealed_key"], "id": 1, "label": "born", "cert_pem": signed(created)}
        assert add(provisioner, made.token(keys=[key], domains=["www.example"])) == OK
        peer = Peer(slots)
        session = peer.opened(0, PIN.encode())
        ((found,), _) = peer(
            "C_GetAttributeValue", session, peer.find(session, Attribute(Cka.CLASS, 1))[0], (Room(Cka.VALUE, 9999),)
        )
        served = x509.load_der_x509_certificate(found.value)
        assert served.public_key() == request.public_key()
        assert provisioner.handle({"RefreshToken": {"label": "web", "pin": PIN, "envelope_key": made.envelope()}}) == OK


def test_the_birth_is_attested(made: Parts) -> None:
    """The document is genuine, and its user_data is the SHA-256 of the request: whoever signs can know what asked."""
    from alcove.attestation import PCR, verify  # noqa: PLC0415

    created = born(made, made.service()[0])
    document = base64.b64decode(created["document_b64"])
    policy = PCR(0, made.nsm.pcr(0))
    verified = verify(document, roots=[made.nsm.root], policy=policy, at=datetime.now(UTC))
    der = x509.load_pem_x509_csr(created["csr_pem"].encode()).public_bytes(Encoding.DER)
    assert verified.document.user_data == hashlib.sha256(der).digest()


def test_nothing_that_is_kept_outside_holds_the_born_key(made: Parts) -> None:
    """The sealed text has no plain key in it: the same names and label make other bytes each time."""
    provisioner, _ = made.service()
    one, two = born(made, provisioner), born(made, provisioner)
    assert one["sealed_key"] != two["sealed_key"]
    assert "PRIVATE" not in one["sealed_key"]
    assert bytes.fromhex("06072a8648ce3d0201") not in base64.b64decode(json.loads(one["sealed_key"])["sealed"])


def test_a_parent_cannot_put_one_key_in_the_place_of_another(made: Parts) -> None:
    """The wrapped-key substitution: another label, another name, mixed parts, another certificate, another KMS key."""
    provisioner, slots = made.service()
    web, shop = born(made, provisioner, "web", "www.example"), born(made, provisioner, "shop", "shop.example")

    def attempt(sealed: str, certificate_pem: str | None, *, label: str = "web", name: str = "www.example") -> Any:
        key = {"sealed_key": sealed, "id": 1, "label": "k", "cert_pem": certificate_pem}
        token = made.token(label, keys=[key], domains=[name])
        return ours(provisioner, {"AddToken": {"token": token}})

    # the shop's key where the web's belongs, by its name and by its label: KMS refuses, the context is another
    for name in ("www.example", "shop.example"):
        error, detail = attempt(shop["sealed_key"], signed(shop, name), name=name)
        assert (error, "InvalidCiphertext" in detail) == ("KmsDecryptFailed", True)
    # the shop's key in its own place, with the certificate of the web's
    error, detail = attempt(shop["sealed_key"], signed(web), label="shop", name="shop.example")
    assert (error, "belongs to another key" in detail) == ("TokenProvisioningFailed", True)
    # the web's key with a certificate for a name that it is not for, though an authority signed it
    assert attempt(web["sealed_key"], signed(web, "shop.example"))[0] == "TokenProvisioningFailed"
    # the web's data key with the shop's ciphertext
    mixed = json.loads(web["sealed_key"]) | {"sealed": json.loads(shop["sealed_key"])["sealed"]}
    error, detail = attempt(json.dumps(mixed), None)
    assert (error, "was changed" in detail) == ("KmsDecryptFailed", True)
    # a key of the parent's own under another KMS key of its own
    foreign = json.loads(web["sealed_key"]) | {"key_id": made.kms.create_key({"PCR0": made.nsm.pcr(0)})}
    error, detail = attempt(json.dumps(foreign), None)
    assert (error, "is sealed under" in detail) == ("KmsDecryptFailed", True)
    assert slots.ids() == []


def test_exported_keys_can_be_bound_too(made: Parts) -> None:
    """A KMS ciphertext with the context of label, names and key opens in its place alone."""
    provisioner, slots = made.service()
    context = {"alcove:label": "web", "alcove:domain": "www.example", "alcove:key-id": made.key_id}
    key = aws_key(made.encrypted(ec_key(), EncryptionContext=context), bound=True)
    pinned = made.envelope(key_id=made.key_id)

    def attempt(label: str, name: str, **change: Any) -> Any:
        token = made.token(label, keys=[key | change], domains=[name], envelope_key=pinned)
        return add(provisioner, token)

    for label, name, change in (("shop", "www.example", {}), ("web", "shop.example", {}),
                                ("web", "www.example", {"bound": False})):  # fmt: skip
        assert attempt(label, name, **change) == {"Err": "KmsDecryptFailed"}
    assert attempt("web", "www.example") == OK
    assert signs(slots, ec_key())


def test_the_image_says_under_which_kms_keys(made: Parts) -> None:
    """A ciphertext under a key that is not pinned is refused, named or not; without pins any is taken."""
    other = made.kms.create_key({"PCR0": made.nsm.pcr(0)})
    encrypted = aws_key(made.kms.encrypt(other, pem(ec_key())))
    strict, _ = made.service()
    assert add(strict, made.token(keys=[encrypted])) == {"Err": "KmsDecryptFailed"}
    named = made.token(keys=[encrypted], envelope_key=made.envelope(key_id=other))
    assert "does not take keys under" in ours(strict, {"AddToken": {"token": named}})[1]
    lax, slots = made.service(kms_keys=None)
    assert add(lax, made.token(keys=[encrypted])) == OK
    assert signs(slots, ec_key())


def test_plain_keys_and_full_tokens_need_the_image_s_consent(made: Parts) -> None:
    """Both are refused by an image that does not say so, whatever the parent asks for."""
    plain = {"pem": pem(ec_key()).decode(), "id": 1, "label": "k"}
    token = made.token(keys=[plain], mechanisms="full", envelope_key=None)
    strict, _ = made.service(full_profile=False)
    assert "takes no keys in clear" in ours(strict, {"AddToken": {"token": token | {"mechanisms": "tls"}}})[1]
    assert "serves TLS alone" in ours(strict, {"AddToken": {"token": token}})[1]
    lax, slots = made.service(plain_keys=True)
    assert add(lax, token) == OK
    assert signs(slots, ec_key())


def test_uses_are_told_to_our_agent(made: Parts, service: tuple[Provisioner, Slots]) -> None:
    """How often each token's keys were used: an agent can see that somebody else signs."""
    provisioner, slots = service
    assert add(provisioner, made.token(keys=[aws_key(made.encrypted(ec_key()))])) == OK
    assert signs(slots, ec_key())
    assert provisioner.handle({"Alcove": "CountUses"}) == {"Ok": {"Uses": {"web": 1}}}


def test_secrets_are_in_no_text(made: Parts) -> None:
    """Neither PIN, nor credentials, nor a plain key show when an order is written out."""
    from alcove.apps.acm.orders import parse_token  # noqa: PLC0415

    plain = {"pem": pem(ec_key()).decode(), "id": 1, "label": "k"}
    text = repr(parse_token(made.token(keys=[plain])))
    assert PIN not in text
    assert "PRIVATE" not in text
    assert made.kms.environment["AWS_SECRET_ACCESS_KEY"] not in text
