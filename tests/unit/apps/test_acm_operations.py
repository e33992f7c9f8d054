"""Signatures, digests and decryptions against `cryptography` itself, and against their own verification."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.apps.acm_device import Peer, ec_key, refused, rsa_key, token

from alcove.apps.acm import rsa_raw
from alcove.apps.acm.cryptoki import Ckg, Ckm, Cko, Ckr, Refused
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.token import Slots
from alcove.apps.acm.values import Mechanism, OaepParameters, PssParameters, Size
from alcove.errors import InputError

CURVES = [ec.SECP224R1, ec.SECP256R1, ec.SECP384R1, ec.SECP521R1]
SHA1 = hashes.SHA1()  # noqa: S303 - the list has it
NAMES = {"SHA1": SHA1, "SHA224": hashes.SHA224(), "SHA256": hashes.SHA256(), "SHA384": hashes.SHA384(),
         "SHA512": hashes.SHA512()}  # fmt: skip
DIGESTS = {name: Ckm.SHA_1 if name == "SHA1" else Ckm[name] for name in NAMES}
DATA = b"what is signed"


class Bench:
    """A session on a token with the RSA key as number 1, and an EC key of each curve behind it."""

    def __init__(self) -> None:
        slots = Slots(lambda: 0.0)
        slots.add(token("bench", [rsa_key(), *map(ec_key, CURVES)]))
        self.peer = Peer(slots)
        self.session = self.peer.opened()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """A call in the session."""
        return self.peer(name, self.session, *arguments)

    def private(self, number: int = 1) -> int:
        """A private key."""
        return self.peer.key(self.session, Cko.PRIVATE_KEY, number)

    def public(self, number: int = 1) -> int:
        """A public key."""
        return self.peer.key(self.session, Cko.PUBLIC_KEY, number)

    def sign(self, mechanism: Mechanism, data: bytes, number: int = 1) -> bytes:
        """A signature, made at once."""
        self("C_SignInit", mechanism, self.private(number))
        signature: bytes = self("C_Sign", data, 2048)
        return signature

    def verify(self, mechanism: Mechanism, data: bytes, signature: bytes, number: int = 1) -> None:
        """Verified by the token."""
        self("C_VerifyInit", mechanism, self.public(number))
        self("C_Verify", data, signature)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def rsa_public() -> Any:
    return rsa_key().public


def digest_info(name: str) -> bytes:
    """RFC 8017 §9.2 note 1, from a signature that `cryptography` made."""
    signature = rsa_key().private.sign(DATA, padding.PKCS1v15(), NAMES[name])  # type: ignore[arg-type, call-arg]
    block = rsa_raw.public_operation(rsa_public(), signature)
    return block[block.index(b"\0", 2) + 1 :]


@pytest.mark.parametrize("name", NAMES)
def test_pkcs1_with_a_hash(bench: Bench, name: str) -> None:
    """SHA*_RSA_PKCS is what `cryptography` verifies, at once and in parts."""
    mechanism = Mechanism(Ckm[f"{name}_RSA_PKCS"])
    signature = bench.sign(mechanism, DATA)
    rsa_public().verify(signature, DATA, padding.PKCS1v15(), NAMES[name])
    bench("C_SignInit", mechanism, bench.private())
    for part in (DATA[:5], b"", DATA[5:]):
        bench("C_SignUpdate", part)
    assert bench("C_SignFinal", 2048) == signature
    bench.verify(mechanism, DATA, signature)


@pytest.mark.parametrize("name", NAMES)
def test_pkcs1_of_the_callers_hash(bench: Bench, name: str) -> None:
    """RSA_PKCS over a DigestInfo is the same signature; this is what OpenSSL asks for in TLS 1.2."""
    signature = bench.sign(Mechanism(Ckm.RSA_PKCS), digest_info(name))
    rsa_public().verify(signature, DATA, padding.PKCS1v15(), NAMES[name])
    bench.verify(Mechanism(Ckm.RSA_PKCS), digest_info(name), signature)


@settings(max_examples=20, deadline=None)
@given(data=st.binary(max_size=300))
def test_pkcs1_of_anything(bench: Bench, data: bytes) -> None:
    """Up to 245 bytes of anything are signed and verified whole; more is out of range."""
    mechanism = Mechanism(Ckm.RSA_PKCS)
    if len(data) > 245:
        with refused(Ckr.DATA_LEN_RANGE):
            bench.sign(mechanism, data)
        return
    signature = bench.sign(mechanism, data)
    assert rsa_raw.public_operation(rsa_public(), signature) == rsa_raw.block_type_1(data, 256)
    bench.verify(mechanism, data, signature)
    with refused(Ckr.SIGNATURE_INVALID):
        bench.verify(mechanism, data[:-1] if data else b"x", signature)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("salt", [0, 20, 32])
def test_pss(bench: Bench, name: str, salt: int) -> None:
    """RSA_PKCS_PSS over a hash and SHA*_RSA_PKCS_PSS over data, both verified by `cryptography` and by the token."""
    mask = Ckg[f"MGF1_{name}"]
    parameters = PssParameters(DIGESTS[name], mask, salt)
    hashed = hashlib.new(name, DATA).digest()
    for mechanism, data in (
        (Mechanism(Ckm.RSA_PKCS_PSS, parameters), hashed),
        (Mechanism(Ckm[f"{name}_RSA_PKCS_PSS"], parameters), DATA),
    ):
        signature = bench.sign(mechanism, data)
        rsa_public().verify(signature, DATA, padding.PSS(padding.MGF1(NAMES[name]), salt), NAMES[name])
        bench.verify(mechanism, data, signature)
        with refused(Ckr.SIGNATURE_INVALID):
            bench.verify(mechanism, data, signature[:-1] + bytes([signature[-1] ^ 1]))


@pytest.mark.parametrize(
    "parameter",
    [
        None,
        PssParameters(Ckm.SHA384, Ckg.MGF1_SHA256, 32),  # not the mechanism's hash
        PssParameters(Ckm.SHA256, 9, 32),
        PssParameters(0x999, Ckg.MGF1_SHA256, 32),
        PssParameters(Ckm.SHA256, Ckg.MGF1_SHA256, 223),  # one more than fits
        PssParameters(Ckm.SHA256, Ckg.MGF1_SHA256, 2**64 - 1),
    ],
)
def test_wrong_pss_parameters(parameter: PssParameters | None) -> None:
    """CKR_MECHANISM_PARAM_INVALID, and no operation is left."""
    slots = Slots(lambda: 0.0)
    slots.add(token("t", [rsa_key()]))
    peer = Peer(slots, new=True)
    session = peer.opened()
    with refused(Ckr.MECHANISM_PARAM_INVALID):
        peer("C_SignInit", session, Mechanism(Ckm.SHA256_RSA_PKCS_PSS, parameter), peer.key(session, Cko.PRIVATE_KEY))
    with refused(Ckr.OPERATION_NOT_INITIALIZED):
        peer("C_Sign", session, DATA, 512)


def test_pss_wants_a_hash_of_the_right_length(bench: Bench) -> None:
    """RSA_PKCS_PSS over 31 bytes for SHA-256 is out of range."""
    with refused(Ckr.DATA_LEN_RANGE):
        bench.sign(Mechanism(Ckm.RSA_PKCS_PSS, PssParameters(Ckm.SHA256, Ckg.MGF1_SHA256, 32)), bytes(31))


@settings(max_examples=10, deadline=None)
@given(data=st.binary(min_size=1, max_size=255))
def test_raw_rsa(bench: Bench, data: bytes) -> None:
    """RSA_X_509 is the bare operation: what is signed comes out of the public key; decryption undoes encryption."""
    raw = Mechanism(Ckm.RSA_X_509)
    signature = bench.sign(raw, data)
    assert rsa_raw.public_operation(rsa_public(), signature) == data.rjust(256, b"\0")
    bench.verify(raw, data, signature)
    bench("C_EncryptInit", raw, bench.public())
    encrypted = bench("C_Encrypt", data, 256)
    bench("C_DecryptInit", raw, bench.private())
    assert bench("C_Decrypt", encrypted, 256) == data.rjust(256, b"\0")


def test_raw_rsa_takes_numbers_below_the_modulus(bench: Bench) -> None:
    """The modulus itself is no data, and neither are 257 bytes."""
    modulus = rsa_public().public_numbers().n.to_bytes(256)
    with refused(Ckr.DATA_INVALID):
        bench.sign(Mechanism(Ckm.RSA_X_509), modulus)
    with refused(Ckr.DATA_LEN_RANGE):
        bench.sign(Mechanism(Ckm.RSA_X_509), bytes(257))


@pytest.mark.parametrize(
    ("mechanism", "scheme"),
    [
        (Mechanism(Ckm.RSA_PKCS), padding.PKCS1v15()),
        (Mechanism(Ckm.RSA_PKCS_OAEP, OaepParameters(Ckm.SHA256, Ckg.MGF1_SHA1, 1, b"label")),
         padding.OAEP(padding.MGF1(SHA1), hashes.SHA256(), b"label")),
        (Mechanism(Ckm.RSA_PKCS_OAEP, OaepParameters(Ckm.SHA_1, Ckg.MGF1_SHA1, 0, None)),
         padding.OAEP(padding.MGF1(SHA1), SHA1, None)),
    ],
)  # fmt: skip
def test_decryption(bench: Bench, mechanism: Mechanism, scheme: Any) -> None:
    """What `cryptography` encrypts is decrypted; sizes are told; the token's own encryption is as good."""
    bench("C_DecryptInit", mechanism, bench.private())
    assert bench("C_Decrypt", rsa_public().encrypt(DATA, scheme), None) == Size(256)
    assert bench("C_Decrypt", rsa_public().encrypt(DATA, scheme), 3) == Size(len(DATA))
    assert bench("C_Decrypt", rsa_public().encrypt(DATA, scheme), 256) == DATA
    bench("C_EncryptInit", mechanism, bench.public())
    assert rsa_key().private.decrypt(bench("C_Encrypt", DATA, 256), scheme) == DATA  # type: ignore[union-attr]
    bench("C_DecryptInit", mechanism, bench.private())
    with refused(Ckr.ENCRYPTED_DATA_LEN_RANGE):
        bench("C_Decrypt", bytes(255), 256)
    bench("C_EncryptInit", mechanism, bench.public())
    with refused(Ckr.DATA_LEN_RANGE):
        bench("C_Encrypt", bytes(250), 256)


def test_a_wrong_oaep_label_does_not_decrypt(bench: Bench) -> None:
    """CKR_ENCRYPTED_DATA_INVALID, whatever was wrong."""
    other = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"other")
    bench("C_DecryptInit", Mechanism(Ckm.RSA_PKCS_OAEP, OaepParameters(Ckm.SHA256, 2, 1, b"label")), bench.private())
    with refused(Ckr.ENCRYPTED_DATA_INVALID):
        bench("C_Decrypt", rsa_public().encrypt(DATA, other), 256)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("curve", CURVES)
def test_ecdsa(bench: Bench, curve: type[ec.EllipticCurve], name: str) -> None:
    """ECDSA over a hash and ECDSA_SHA* over data are r ‖ s of the curve's size, for every curve and hash."""
    number, key = CURVES.index(curve) + 2, ec_key(curve)
    half = (curve().key_size + 7) // 8
    for mechanism, data in (
        (Mechanism(Ckm.ECDSA), hashlib.new(name, DATA).digest()),
        (Mechanism(Ckm[f"ECDSA_{name}"]), DATA),
    ):
        signature = bench.sign(mechanism, data, number)
        assert len(signature) == 2 * half
        der = encode_dss_signature(int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))
        key.public.verify(der, DATA, ec.ECDSA(NAMES[name]))  # type: ignore[arg-type, call-arg]
        bench.verify(mechanism, data, signature, number)
        with refused(Ckr.SIGNATURE_INVALID):
            bench.verify(mechanism, data, signature[half:] + signature[:half], number)


@pytest.mark.parametrize("length", [1, 16, 31, 33, 40, 100])
def test_ecdsa_of_other_lengths(bench: Bench, length: int) -> None:
    """Short data is the number that it spells, of long data the leftmost bytes count: for P-256, 32."""
    data = bytes(range(1, length + 1))
    signature = bench.sign(Mechanism(Ckm.ECDSA), data, 3)
    bench.verify(Mechanism(Ckm.ECDSA), data[:32].rjust(32, b"\0"), signature, 3)


def test_ecdsa_of_nothing_is_refused(bench: Bench) -> None:
    """No data, no number."""
    with refused(Ckr.DATA_LEN_RANGE):
        bench.sign(Mechanism(Ckm.ECDSA), b"", 3)


@pytest.mark.parametrize("name", NAMES)
def test_digests(bench: Bench, name: str) -> None:
    """At once and in parts, and their lengths when asked."""
    expected = hashlib.new(name, DATA).digest()
    bench("C_DigestInit", Mechanism(DIGESTS[name]))
    assert bench("C_Digest", DATA, None) == Size(len(expected))
    assert bench("C_Digest", DATA, 64) == expected
    bench("C_DigestInit", Mechanism(DIGESTS[name]))
    for byte in DATA:
        bench("C_DigestUpdate", bytes([byte]))
    assert bench("C_DigestFinal", 3) == Size(len(expected))
    assert bench("C_DigestFinal", 64) == expected
    with refused(Ckr.OPERATION_NOT_INITIALIZED):
        bench("C_DigestFinal", 64)


def test_one_operation_of_a_kind_at_a_time(bench: Bench) -> None:
    """A second is CKR_OPERATION_ACTIVE; asking for the size does not end the first; an error does."""
    mechanism = Mechanism(Ckm.SHA256_RSA_PKCS)
    bench("C_SignInit", mechanism, bench.private())
    with refused(Ckr.OPERATION_ACTIVE):
        bench("C_SignInit", mechanism, bench.private())
    assert bench("C_Sign", DATA, None) == bench("C_Sign", DATA, 255) == Size(256)
    assert len(bench("C_Sign", DATA, 256)) == 256
    with refused(Ckr.OPERATION_NOT_INITIALIZED):
        bench("C_Sign", DATA, 256)
    bench("C_SignInit", Mechanism(Ckm.RSA_PKCS), bench.private())
    with refused(Ckr.FUNCTION_NOT_SUPPORTED):  # PKCS#11: a single-part mechanism
        bench("C_SignUpdate", DATA)
    bench("C_SignInit", mechanism, bench.private())
    bench("C_Sign", DATA, 256)


@pytest.mark.parametrize(
    ("call", "kind", "which", "ckr"),
    [
        ("C_SignInit", Ckm.ECDSA, "private", Ckr.KEY_TYPE_INCONSISTENT),
        ("C_SignInit", Ckm.SHA256, "private", Ckr.MECHANISM_INVALID),
        ("C_SignInit", Ckm.SHA256_RSA_PKCS, "public", Ckr.KEY_FUNCTION_NOT_PERMITTED),
        ("C_VerifyInit", Ckm.SHA256_RSA_PKCS, "private", Ckr.KEY_FUNCTION_NOT_PERMITTED),
        ("C_DecryptInit", Ckm.SHA256_RSA_PKCS, "private", Ckr.MECHANISM_INVALID),
        ("C_DecryptInit", Ckm.RSA_PKCS, "public", Ckr.KEY_FUNCTION_NOT_PERMITTED),
        ("C_EncryptInit", Ckm.RSA_PKCS, "private", Ckr.KEY_FUNCTION_NOT_PERMITTED),
        ("C_DecryptInit", Ckm.ECDSA, "private", Ckr.MECHANISM_INVALID),
    ],
)
def test_keys_are_used_for_what_they_are(bench: Bench, call: str, kind: Ckm, which: str, ckr: Ckr) -> None:
    """The wrong mechanism, the wrong half, the wrong kind of key."""
    handle = bench.private() if which == "private" else bench.public()
    with refused(ckr):
        bench(call, Mechanism(kind), handle)


@pytest.mark.parametrize("handle", [0, 3, 99, 2**64 - 1])
def test_a_handle_must_be_a_key(bench: Bench, handle: int) -> None:
    """None, a certificate, beyond the objects."""
    with refused(Ckr.KEY_HANDLE_INVALID):
        bench("C_SignInit", Mechanism(Ckm.SHA256_RSA_PKCS), handle)


def test_a_parameter_where_there_is_none_is_refused(bench: Bench) -> None:
    """RSA_PKCS with four bytes of parameter."""
    with refused(Ckr.MECHANISM_PARAM_INVALID):
        bench("C_SignInit", Mechanism(Ckm.RSA_PKCS, b"what"), bench.private())


def test_signatures_of_other_lengths_are_refused(bench: Bench) -> None:
    """CKR_SIGNATURE_LEN_RANGE, before anything is computed."""
    for number, kind, length in ((1, Ckm.SHA256_RSA_PKCS, 255), (3, Ckm.ECDSA_SHA256, 65)):
        with refused(Ckr.SIGNATURE_LEN_RANGE):
            bench.verify(Mechanism(kind), DATA, bytes(length), number)


def test_a_wrong_result_is_not_given_away() -> None:
    """A key whose numbers do not belong together answers with an error: one faulty signature would tell its primes."""
    numbers = rsa_key().private.private_numbers()  # type: ignore[union-attr]

    class Faulty:
        key_size = 2048

        def private_numbers(self) -> Any:
            class Numbers:
                public_numbers = numbers.public_numbers  # type: ignore[union-attr]
                p, q, dmp1, iqmp = numbers.p, numbers.q, numbers.dmp1, numbers.iqmp  # type: ignore[union-attr]
                dmq1 = numbers.dmq1 ^ 4  # type: ignore[union-attr]

            return Numbers

    with pytest.raises(Refused) as caught:
        rsa_raw.private_operation(Faulty(), b"\2", lambda size: bytes([7] * size))  # type: ignore[arg-type]
    assert caught.value.ckr is Ckr.DEVICE_ERROR


def test_keys_that_are_not_served() -> None:
    """Another curve, another kind, no key at all: one line each."""
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - for this test alone

    for private in (ec.generate_private_key(ec.SECP256K1()), ed25519.Ed25519PrivateKey.generate()):
        with pytest.raises(InputError, match="not served"):
            KeyPair(private)
    for pem in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(InputError, match="no private key"):
            KeyPair.from_pem(pem)
