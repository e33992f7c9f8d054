"""Vectors of the signature section and of what is signed (eif.md §3), one step of the check failing in each."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives import serialization
from vectors.collection import Collection, Fields
from vectors.eif import keys

vector = Collection("signature")
payload = Collection("payload")
Made = tuple[bytes, Fields]

PCR0 = "22" * 48
WHO = keys.Identity()
CBOR_PEM = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def checked(data: bytes, expect: str, who: keys.Identity = WHO) -> Made:
    """A section with what the check needs, and its outcome."""
    good = expect == "accepted"
    fields: Fields = {
        "expect": expect,
        "pcr0": PCR0,
        "at": keys.AT,
        "field": "signature" if expect == "malformed" else None,
    }
    return data, fields | ({"pcr8": who.pcr8, "algorithm": who.algorithm} if good else {})


def with_sign1(sign1: bytes, expect: str, pem: bytes = WHO.pem) -> Made:
    """A section around this COSE_Sign1."""
    return checked(b"\x81" + keys.entry(pem, sign1), expect)


def good_sign1(who: keys.Identity = WHO) -> bytes:
    """A COSE_Sign1 that is right in everything."""
    return keys.sign1(who, keys.payload(bytes.fromhex(PCR0)))


@payload
def specification() -> Made:
    """PCR0 of 00 01 … 2f."""
    value = bytes(range(48))
    fields: Fields = {"expect": "read", "source": "eif.md §3.2", "register-index": 0, "register-value": value.hex()}
    return keys.payload(value), fields


def _no_payload(data: bytes) -> Made:
    return data, {"expect": "malformed", "field": "signature"}


@payload
def value_as_a_byte_string() -> Made:
    """The register's value is a byte string instead of an array of integers."""
    data = b"\xa2" + keys.text("register_index") + b"\0" + keys.text("register_value") + keys.octets(bytes(48))
    return _no_payload(data)


@payload
def value_of_256() -> Made:
    """An integer of the register's value does not fit a byte."""
    return _no_payload(keys.payload(bytes(48))[:-1] + keys.head(0, 256))


@payload
def value_negative() -> Made:
    """An integer of the register's value is negative."""
    return _no_payload(keys.payload(bytes(48))[:-1] + keys.head(1, 0))


@payload
def value_missing() -> Made:
    """No register_value."""
    return _no_payload(b"\xa1" + keys.text("register_index") + b"\0")


@payload
def index_a_text() -> Made:
    """The register's number is a text."""
    return _no_payload(keys.payload(bytes(48)).replace(b"index\0", b"index\x610"))


@payload
def trailing_byte() -> Made:
    """A byte after the map."""
    return _no_payload(keys.payload(bytes(48)) + b"\0")


@vector
def specification_section() -> Made:
    """The section of eif.md §3.2, right in its form alone: the certificate is a stub."""
    data = b"\x81" + keys.entry(CBOR_PEM, bytes.fromhex("d28444a1013822a04040"))
    return data, {"expect": "refused", "source": "eif.md §3.2", "pcr0": PCR0, "at": keys.AT}


@vector
def p256() -> Made:
    """ES256 with a key on P-256."""
    who = keys.Identity(-7)
    return checked(keys.section(who, PCR0), "accepted", who)


@vector
def p384() -> Made:
    """ES384 with a key on P-384."""
    return checked(keys.section(WHO, PCR0), "accepted")


@vector
def p521() -> Made:
    """ES512 with a key on P-521."""
    who = keys.Identity(-36)
    return checked(keys.section(who, PCR0), "accepted", who)


@vector
def tagged() -> Made:
    """The COSE_Sign1 in tag 18, which writers leave out and readers take."""
    return with_sign1(b"\xd2" + good_sign1(), "accepted")


@vector
def two_certificates() -> Made:
    """The PEM file holds another certificate after the signer's: the first counts."""
    return with_sign1(good_sign1(), "accepted", WHO.pem + keys.Identity(scalar=4).pem)


@vector
def two_certificates_wrong_order() -> Made:
    """The signer's certificate is the second of the PEM file."""
    return with_sign1(good_sign1(), "refused", keys.Identity(scalar=4).pem + WHO.pem)


@vector
def second_entry() -> Made:
    """A second signature, which nobody looks at, of another image."""
    entries = [keys.entry(WHO.pem, sign1) for sign1 in (good_sign1(), keys.sign1(WHO, keys.payload(bytes(48))))]
    return checked(b"\x82" + b"".join(entries), "accepted")


@vector
def indefinite_array() -> Made:
    """The outer array is of indefinite length: readers take it, writers never make it."""
    return checked(b"\x9f" + keys.section(WHO, PCR0)[1:] + b"\xff", "accepted")


@vector
def expired() -> Made:
    """The certificate's time is over."""
    who = keys.Identity(years=(2020, 2021))
    return checked(keys.section(who, PCR0), "refused")


@vector
def not_yet_valid() -> Made:
    """The certificate's time has not come."""
    who = keys.Identity(years=(2030, 2031))
    return checked(keys.section(who, PCR0), "refused")


@vector
def other_image() -> Made:
    """A signature over another PCR0."""
    return checked(keys.section(WHO, "23" + PCR0[2:]), "refused")


@vector
def register_1() -> Made:
    """A signature over PCR1."""
    return with_sign1(keys.sign1(WHO, keys.payload(bytes.fromhex(PCR0), index=1)), "refused")


@vector
def another_key() -> Made:
    """The certificate is not that of the key that signed."""
    return with_sign1(good_sign1(keys.Identity(scalar=4)), "refused")


@vector
def algorithm_of_another_curve() -> Made:
    """ES256 is named, the key is on P-384."""
    return with_sign1(keys.sign1(WHO, keys.payload(bytes.fromhex(PCR0)), algorithm=-7), "refused")


@vector
def signature_bit() -> Made:
    """The last bit of s is another."""
    sign1 = good_sign1()
    return with_sign1(sign1[:-1] + bytes([sign1[-1] ^ 1]), "refused")


@vector
def signature_of_zeros() -> Made:
    """R and s are zero."""
    return with_sign1(good_sign1()[:-96] + bytes(96), "refused")


@vector
def signature_empty() -> Made:
    """A signature without a byte."""
    return with_sign1(good_sign1()[:-98] + b"\x40", "refused")


@vector
def signature_in_der() -> Made:
    """R and s as DER has them instead of at their fixed width."""
    sign1 = good_sign1()
    der = b"\x30\x64\x02\x30" + sign1[-96:-48] + b"\x02\x30" + sign1[-48:]
    return with_sign1(sign1[:-98] + keys.octets(der), "refused")


@vector
def certificate_not_pem() -> Made:
    """The certificate is DER."""
    return with_sign1(good_sign1(), "refused", b"\x30\x03\x02\x01\x01")


def with_changed_certificate(old: bytes, new: bytes) -> Made:
    """A section whose certificate has other bytes somewhere."""
    der = WHO.certificate.public_bytes(serialization.Encoding.DER)
    text = base64.encodebytes(der.replace(old, new, 1))
    return with_sign1(good_sign1(), "refused", b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n")


@vector
def certificate_of_version_64() -> Made:
    """A certificate of a version that X.509 does not have."""
    return with_changed_certificate(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x3f")


@vector
def certificate_with_a_point_of_no_form() -> Made:
    """The certificate's key is a point that is neither compressed nor uncompressed."""
    return with_changed_certificate(b"\x03\x62\x00\x04", b"\x03\x62\x00\x05")


@vector
def certificate_of_an_unknown_curve() -> Made:
    """The certificate's key is on a curve that nobody defined."""
    return with_changed_certificate(b"\x2b\x81\x04\x00\x22", b"\x2b\x81\x04\x00\x7f")


@vector
def certificate_cut() -> Made:
    """The certificate lacks its last bytes."""
    return with_sign1(good_sign1(), "refused", WHO.pem[:-60] + b"\n-----END CERTIFICATE-----\n")


@vector
def empty() -> Made:
    """A section without a byte."""
    return checked(b"", "malformed")


@vector
def empty_array() -> Made:
    """An array of no signatures, whose first element upstream takes (eif.md §8 trap 4)."""
    return checked(b"\x80", "malformed")


@vector
def not_an_array() -> Made:
    """A map instead of an array of maps."""
    return checked(keys.entry(WHO.pem, good_sign1()), "malformed")


@vector
def trailing_byte_of_section() -> Made:
    """A byte after the array."""
    return checked(keys.section(WHO, PCR0) + b"\0", "malformed")


@vector
def certificate_as_a_byte_string() -> Made:
    """The certificate is a byte string instead of an array of integers."""
    entry = b"\xa2" + keys.text("signing_certificate") + keys.octets(WHO.pem)
    return checked(b"\x81" + entry + keys.text("signature") + keys.numbers(good_sign1()), "malformed")


@vector
def signature_as_a_byte_string() -> Made:
    """The signature is a byte string instead of an array of integers."""
    entry = b"\xa2" + keys.text("signing_certificate") + keys.numbers(WHO.pem)
    return checked(b"\x81" + entry + keys.text("signature") + keys.octets(good_sign1()), "malformed")


@vector
def certificate_with_256() -> Made:
    """An integer of the certificate does not fit a byte."""
    data = keys.section(WHO, PCR0)
    return checked(data.replace(b"\x18\x2d", b"\x19\x01\x00", 1), "malformed")


@vector
def signature_missing() -> Made:
    """An entry without a signature."""
    return checked(b"\x81\xa1" + keys.text("signing_certificate") + keys.numbers(WHO.pem), "malformed")


@vector
def key_twice() -> Made:
    """The entry holds its certificate twice."""
    entry = keys.entry(WHO.pem, good_sign1())
    again = keys.text("signing_certificate") + keys.numbers(WHO.pem)
    return checked(b"\x81\xa3" + entry[1:] + again, "malformed")


@vector
def length_of_four_gigabytes() -> Made:
    """An array that claims 2^32 - 1 elements."""
    return checked(b"\x9a\xff\xff\xff\xff", "malformed")


@vector
def nested_deeply() -> Made:
    """A thousand arrays in each other."""
    return checked(b"\x81" * 1000, "malformed")


@vector
def sign1_of_three() -> Made:
    """A COSE_Sign1 of three parts."""
    sign1 = good_sign1()
    return with_sign1(b"\x83" + sign1[1:-98], "malformed")


@vector
def sign1_tagged_otherwise() -> Made:
    """The COSE_Sign1 in tag 17."""
    return with_sign1(b"\xd1" + good_sign1(), "malformed")


@vector
def sign1_without_algorithm() -> Made:
    """The protected header is an empty map."""
    sign1 = good_sign1()
    return with_sign1(sign1.replace(b"\x44\xa1\x01\x38\x22", b"\x41\xa0", 1), "malformed")


@vector
def sign1_trailing_byte() -> Made:
    """A byte after the COSE_Sign1."""
    return with_sign1(good_sign1() + b"\0", "malformed")
