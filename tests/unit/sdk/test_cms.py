from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alcove.sdk import ber
from alcove.sdk.cms import MAX_ENVELOPE, open_envelope, subject_public_key_info
from alcove.sdk.errors import EnvelopeError

Seal = Callable[..., bytes]
reuse = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 32, 1024, 4096])
@pytest.mark.parametrize("chunk", [None, 16, 1000, 5000])
def test_both_forms_of_kms_open(key: rsa.RSAPrivateKey, seal: Seal, size: int, chunk: int | None) -> None:
    """The content may be one primitive string, or a constructed one in pieces of any size (kms.md §4)."""
    secret = bytes(range(256)) * 16
    envelope = seal(key.public_key(), secret[:size], chunk=chunk)
    assert open_envelope(envelope, key) == secret[:size]


def test_the_sizes_are_those_of_real_envelopes(key: rsa.RSAPrivateKey, seal: Seal) -> None:
    """Our test envelopes have the sizes of kms.md §4's table, so they have its layout."""
    sizes = [(0, 457, 461), (16, 473, 477), (32, 489, 493), (1024, 1483, 1487), (4096, 4555, 4559)]
    for size, primitive, constructed in sizes:
        assert len(seal(key.public_key(), bytes(size))) == primitive
        assert len(seal(key.public_key(), bytes(size), chunk=8192)) == constructed


@pytest.mark.parametrize("version", [0, 2])
@pytest.mark.parametrize("chunk", [None, 32])
def test_der_opens_too(
    key: rsa.RSAPrivateKey, seal: Seal, definite: Callable[..., bytes], version: int, chunk: int | None
) -> None:
    """Definite lengths, and the versions that other writers use, are accepted."""
    envelope = seal(key.public_key(), b"der", outer=definite, version=version, chunk=chunk)
    assert open_envelope(envelope, key) == b"der"


def test_what_our_kms_seals_opens(key: rsa.RSAPrivateKey) -> None:
    """The KMS's own writer and this reader agree."""
    recipient = pytest.importorskip("alcove.kms.recipient")
    sealed = recipient.seal(b"s3cret", subject_public_key_info(key.public_key()), content_key=bytes(32), iv=bytes(16))
    assert open_envelope(sealed, key) == b"s3cret"


@pytest.mark.parametrize(
    "fault",
    [
        {"recipients": 0},
        {"recipients": 2},
        {"version": 3},
        {"key_size": 16},
        {"iv_size": 12},
        {"cipher": "608648016503040102"},
        {"oaep": bytes.fromhex("300d06092a864886f70d0101010500")},
        {"oaep": bytes.fromhex("300d06092a864886f70d0101073000")},
        {"oaep_hash": hashes.SHA1()},  # noqa: S303 - the fault
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_another_meaning_is_refused(key: rsa.RSAPrivateKey, seal: Seal, fault: dict[str, object]) -> None:
    """One recipient, OAEP with SHA-256 twice, AES-256, an IV of 16 bytes: anything else is the one error."""
    with pytest.raises(EnvelopeError):
        open_envelope(seal(key.public_key(), b"secret", **fault), key)


def test_another_key_trailing_bytes_and_a_giant_are_refused(key: rsa.RSAPrivateKey, seal: Seal) -> None:
    """All with the same message, and without a cause that tells more."""
    good = seal(key.public_key(), b"secret")
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    refused = [
        (good, stranger), (good + b"\x00", key), (good[:-1], key), (good + bytes(MAX_ENVELOPE), key), (b"", key),
    ]  # fmt: skip
    messages = set()
    for envelope, with_key in refused:
        with pytest.raises(EnvelopeError) as caught:
            open_envelope(envelope, with_key)
        messages.add(str(caught.value))
        assert caught.value.__suppress_context__
    assert len(messages) == 1


@reuse
@given(data=st.binary(max_size=700))
def test_any_bytes_are_the_one_error(key: rsa.RSAPrivateKey, data: bytes) -> None:
    """Any bytes → the one error; a random envelope for our key does not happen."""
    with pytest.raises(EnvelopeError):
        open_envelope(data, key)


@reuse
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), chunk=st.sampled_from([None, 16]))
def test_a_changed_byte_opens_or_is_the_one_error(
    key: rsa.RSAPrivateKey, seal: Seal, place: float, flip: int, chunk: int | None
) -> None:
    """CBC is malleable, so a change may open to other bytes; nothing but the one error is raised."""
    envelope = bytearray(seal(key.public_key(), b"x" * 40, chunk=chunk))
    envelope[int(place * len(envelope))] ^= flip
    with contextlib.suppress(EnvelopeError):
        open_envelope(bytes(envelope), key)


@given(st.binary(max_size=300))
def test_the_ber_reader_returns_or_raises_value_error(data: bytes) -> None:
    """Any bytes → a node, or ValueError, nothing else."""
    with contextlib.suppress(ValueError):
        ber.parse(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x80" * 40 + b"\x00\x00" * 40,
        b"\x30\x82\x10\x00" + b"\x05\x00" * 2048,
        b"\x04\x80\x00\x00",
        b"\x1f\x01\x00",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x02\x00\x00",
        b"\x30\xff" + b"\xff" * 200,
    ],
)
def test_ber_beyond_the_limits_is_refused(data: bytes) -> None:
    """Too deep, too many values, primitive with indefinite length, long tags, lengths beyond the input, stray ends."""
    with pytest.raises(ValueError):
        ber.parse(data)


def test_long_forms_of_lengths_are_ber() -> None:
    """A length may have leading zeros."""
    assert ber.parse(b"\x04\x84\x00\x00\x00\x01A").octets() == b"A"
    assert ber.parse(b"\x24\x80\x04\x01A\x24\x03\x04\x01B\x00\x00").octets() == b"AB"


@pytest.mark.parametrize("bits", [2048, 3072])
def test_the_public_key_is_written_as_the_library_writes_it(bits: int) -> None:
    """Our hand-made SubjectPublicKeyInfo equals cryptography's."""
    public = rsa.generate_private_key(public_exponent=65537, key_size=bits).public_key()
    expected = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert subject_public_key_info(public) == expected


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("stream", [[], ["-stream", "-indef"]], ids=["der", "ber"])
@pytest.mark.parametrize("recipient", [[], ["-keyid"]], ids=["issuer", "keyid"])
def test_what_openssl_encrypts_opens(
    key: rsa.RSAPrivateKey, tmp_path: Path, stream: list[str], recipient: list[str]
) -> None:
    """OpenSSL's CMS opens, in DER with definite lengths and in BER as it streams."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "recipient")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = bytes(range(256)) * 40
    options = [
        "-aes-256-cbc", "-binary", "-outform", "DER", *recipient, *stream, "-recip", "cert.pem",
        "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha256",
    ]  # fmt: skip
    done = subprocess.run(
        ["openssl", "cms", "-encrypt", *options], input=secret, capture_output=True, cwd=tmp_path, check=True
    )
    assert open_envelope(done.stdout, key) == secret
