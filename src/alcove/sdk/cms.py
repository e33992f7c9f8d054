"""Open CiphertextForRecipient: CMS EnvelopedData (RFC 5652) as KMS writes it (sdk.md §4, kms.md §4).

Core: an envelope and a private key in, the plaintext out.

Liberal in structure, for BER and DER alike; strict in meaning:
    1 size, and exactly one BER value
    2 ContentInfo with EnvelopedData, which holds exactly one recipient and no attributes
    3 the content key: RSAES-OAEP, SHA-256 for both hashes, empty label; 32 bytes
    4 the content: AES-256-CBC, IV of 16 bytes, whole blocks, PKCS #7 padding

The format has no authentication: whoever knows the public key can make a valid envelope. TLS to KMS must therefore end
inside the enclave (sdk.md §9). Every failure is the one `EnvelopeError`, so that an answer tells a forger nothing.
The recipient's identifier is not compared: that the key opens is the stronger statement, and its formula rests on one
sample (sdk.md §13).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from alcove.sdk.ber import Node, parse
from alcove.sdk.errors import EnvelopeError

MAX_ENVELOPE: Final = 65536  # KMS's own limit is 6144 (kms.md §3); this one only bounds the work
CONTENT_KEY_BYTES: Final = 32
BLOCK: Final = 16

_SEQUENCE, _SET, _INTEGER, _OID, _NULL, _BIT_STRING = 0x30, 0x31, 0x02, 0x06, 0x05, 0x03
_CONTEXT_0, _EXPLICIT_0, _EXPLICIT_1 = 0x80, 0xA0, 0xA1
_ENVELOPED_DATA: Final = bytes.fromhex("2a864886f70d010703")
_DATA: Final = bytes.fromhex("2a864886f70d010701")
_RSA: Final = bytes.fromhex("2a864886f70d010101")
_RSAES_OAEP: Final = bytes.fromhex("2a864886f70d010107")
_MGF1: Final = bytes.fromhex("2a864886f70d010108")
_SHA256: Final = bytes.fromhex("608648016503040201")
_AES256_CBC: Final = bytes.fromhex("60864801650304012a")
_VERSIONS: Final = (b"\x00", b"\x02")  # RFC 5652 §6.1, §6.2.1: 2 with a key identifier, 0 with issuer and serial


def open_envelope(envelope: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """The plaintext of an envelope that was made for `key`.

    Raises:
        EnvelopeError: It cannot be opened, for whatever reason.
    """
    try:
        return _open(envelope, key)
    except ValueError:
        raise EnvelopeError from None


def _open(envelope: bytes, key: rsa.RSAPrivateKey) -> bytes:
    if len(envelope) > MAX_ENVELOPE:  # 1
        raise ValueError("the envelope is too large")
    kind, explicit = _members(parse(envelope), _SEQUENCE, 2)  # 2
    _expect(kind, _OID, _ENVELOPED_DATA)
    (enveloped,) = _members(explicit, _EXPLICIT_0, 1)
    version, recipients, content = _members(enveloped, _SEQUENCE, 3)
    _expect(version, _INTEGER, *_VERSIONS)
    (recipient,) = _members(recipients, _SET, 1)
    content_key = _content_key(recipient, key)
    return _content(content, content_key)


def _content_key(recipient: Node, key: rsa.RSAPrivateKey) -> bytes:
    """Step 3: KeyTransRecipientInfo."""
    version, _identifier, algorithm, wrapped = _members(recipient, _SEQUENCE, 4)
    _expect(version, _INTEGER, *_VERSIONS)
    scheme, parameters = _members(algorithm, _SEQUENCE, 2)
    _expect(scheme, _OID, _RSAES_OAEP)
    hash_field, mask_field = _members(parameters, _SEQUENCE, 2)  # no pSource: the label is empty
    _expect_sha256(*_members(hash_field, _EXPLICIT_0, 1))
    (mask,) = _members(mask_field, _EXPLICIT_1, 1)
    mask_name, mask_hash = _members(mask, _SEQUENCE, 2)
    _expect(mask_name, _OID, _MGF1)
    _expect_sha256(mask_hash)
    sha256 = hashes.SHA256()
    oaep = rsa_padding.OAEP(mgf=rsa_padding.MGF1(sha256), algorithm=sha256, label=None)
    content_key = key.decrypt(wrapped.octets(), oaep)
    if len(content_key) != CONTENT_KEY_BYTES:
        raise ValueError("the content key has a wrong size")
    return content_key


def _content(node: Node, content_key: bytes) -> bytes:
    """Step 4: EncryptedContentInfo; the content is `80` and one string, or `a0` and strings."""
    kind, algorithm, encrypted = _members(node, _SEQUENCE, 3)
    _expect(kind, _OID, _DATA)
    cipher, iv = _members(algorithm, _SEQUENCE, 2)
    _expect(cipher, _OID, _AES256_CBC)
    ciphertext = encrypted.octets(_CONTEXT_0)
    if not ciphertext or len(ciphertext) % BLOCK:
        raise ValueError("the ciphertext is not made of whole blocks")
    decryptor = Cipher(algorithms.AES(content_key), modes.CBC(iv.octets())).decryptor()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    unpadder = padding.PKCS7(BLOCK * 8).unpadder()
    return unpadder.update(padded) + unpadder.finalize()


def _members(node: Node, tag: int, count: int) -> Sequence[Node]:
    if node.tag != tag or len(node.children) != count:
        raise ValueError(f"not a value {tag:#04x} of {count} members")
    return node.children


def _expect(node: Node, tag: int, *contents: bytes) -> None:
    if node.tag != tag or node.content not in contents:
        raise ValueError(f"not the expected value of tag {tag:#04x}")


def _expect_sha256(node: Node) -> None:
    """AlgorithmIdentifier of SHA-256; its parameters are NULL or absent (RFC 5754 §2)."""
    if node.tag != _SEQUENCE or len(node.children) not in (1, 2):
        raise ValueError("not an algorithm identifier")
    _expect(node.children[0], _OID, _SHA256)
    for parameters in node.children[1:]:
        _expect(parameters, _NULL, b"")


def subject_public_key_info(key: rsa.RSAPublicKey) -> bytes:
    """DER SubjectPublicKeyInfo (RFC 8017 §A.1.1), as the document's `public_key` must hold it.

    Made by hand: cryptography's serialization module brings SSH and bcrypt along, which costs a guest under emulation
    most of a second.
    """
    numbers = key.public_numbers()
    modulus, exponent = _integer(numbers.n), _integer(numbers.e)
    algorithm = _der(_SEQUENCE, _der(_OID, _RSA) + _der(_NULL, b""))
    return _der(_SEQUENCE, algorithm + _der(_BIT_STRING, b"\x00" + _der(_SEQUENCE, modulus + exponent)))


def _integer(number: int) -> bytes:
    return _der(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content
