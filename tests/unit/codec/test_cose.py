from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.codec import cbor, cose

SIGN1 = cose.Sign1(cose.ES384_PROTECTED, b"payload", bytes(range(96)))
DATA = cose.encode_sign1(SIGN1)
PARTS = [SIGN1.protected, {}, SIGN1.payload, SIGN1.signature]


def test_the_encoding_is_the_platforms() -> None:
    """Untagged, with the first bytes that every genuine document has (attestation.md §1)."""
    assert DATA.startswith(bytes.fromhex("8444a1013822a047"))
    assert cose.encode_sign1(cose.Sign1(SIGN1.protected, bytes(300), SIGN1.signature))[6:10].hex() == "a059012c"[:8]
    assert cose.decode_sign1(DATA) == SIGN1


@pytest.mark.parametrize("prefix", ["d2", "d812", "d90012"])
def test_tag_18_is_accepted_in_every_encoding(prefix: str) -> None:
    """The tag is optional and may be written long."""
    assert cose.decode_sign1(bytes.fromhex(prefix) + DATA) == SIGN1


@pytest.mark.parametrize("prefix", ["d1", "d3", "d863", "d2d2", "82"])
def test_other_wrappings_are_refused(prefix: str) -> None:
    """Other tags, a tag twice and another array are no COSE_Sign1."""
    with pytest.raises(ValueError, match=r"tag|array|input ends"):
        cose.decode_sign1(bytes.fromhex(prefix) + DATA)


@pytest.mark.parametrize("size", [1, 23, 24, 255, 256, 4096, cose.MAX_PAYLOAD, cose.MAX_PAYLOAD + 1])
def test_the_usual_encoding_is_read_at_once(size: int) -> None:
    """Which is that of a payload of 256 bytes and more: the structure comes out as from the four items."""
    sign1 = cose.Sign1(SIGN1.protected, bytes(size), SIGN1.signature)
    assert cose.usual_sign1(cose.encode_sign1(sign1)) == (sign1 if 256 <= size <= cose.MAX_PAYLOAD else None)


@given(st.integers(0, 407), st.integers(0, 4), st.binary(max_size=4), st.sampled_from([b"", b"\0", b"\x58\x60"]))
def test_the_usual_encoding_is_no_other_reading(at: int, cut: int, new: bytes, end: bytes) -> None:
    """Whatever is changed, what is read at once is what the four items say."""
    whole = cose.encode_sign1(cose.Sign1(SIGN1.protected, bytes(300), SIGN1.signature))
    data = whole[:at] + new + whole[at + cut :] + end
    found = cose.usual_sign1(data)
    assert found is None or found == cose.check_parts(cose.sign1_parts(data))


def test_bytes_after_the_structure_are_refused() -> None:
    """Nothing may follow."""
    with pytest.raises(cbor.CborError, match="follow"):
        cose.decode_sign1(DATA + b"\0")


@pytest.mark.parametrize(
    ("index", "part"),
    [
        (0, b""),
        (0, {1: -35}),
        (0, "text"),
        (0, cbor.encode({1: -7})),
        (0, cbor.encode({1: -36})),
        (0, cbor.encode({1: "ES384"})),
        (0, cbor.encode({})),
        (0, cbor.encode({1: -35, 4: b"key"})),
        (0, cbor.encode([1, -35])),
        (0, bytes.fromhex("a101fbc041800000000000")),  # -35.0
        (0, cbor.encode({1: -35}) + b"\0"),
        (1, b""),
        (1, []),
        (1, None),
        (2, b""),
        (2, None),
        (2, bytes(cose.MAX_PAYLOAD + 1)),
        (3, b""),
        (3, bytes(95)),
        (3, bytes(97)),
        (3, None),
    ],
)
def test_wrong_parts_are_refused(index: int, part: object) -> None:
    """Each part has one type and its sizes; the algorithm is ES384 and nothing stands beside it."""
    parts: list[object] = [*PARTS]
    parts[index] = part
    with pytest.raises(ValueError, match=r"header|payload|signature|offset"):
        cose.decode_sign1(cbor.encode(parts))


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_count_is_refused(count: int) -> None:
    """Four parts, no more and no fewer."""
    with pytest.raises(cose.CoseError, match="four"):
        cose.decode_sign1(cbor.encode([*PARTS, 1][:count]))


def test_the_protected_header_is_kept_as_received() -> None:
    """A longer encoding of the same header is accepted, and stays as it was: it is what was signed."""
    long_form = bytes.fromhex("bf013822ff")
    sign1 = cose.decode_sign1(cbor.encode([long_form, {1: 2}, b"p", bytes(96)]))
    assert sign1.protected == long_form


def test_the_signed_bytes_are_those_of_the_specification() -> None:
    """Sig_structure of attestation.md §1."""
    structure = cose.sign1_structure(cose.ES384_PROTECTED, bytes(256))
    assert structure == bytes.fromhex("846a5369676e61747572653144a101382240590100") + bytes(256)
