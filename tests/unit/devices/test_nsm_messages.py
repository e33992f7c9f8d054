"""NSM messages against the vectors of nsm.md §3-§5."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.codec import cbor
from alcove.devices.nsm import messages as nsm
from alcove.errors import ProtocolError

REQUESTS = [
    (nsm.DescribePCR(0), "a16b4465736372696265504352a165696e64657800"),
    (nsm.DescribePCR(31), "a16b4465736372696265504352a165696e646578181f"),
    (nsm.ExtendPCR(16, b"\1\2\3"), "a169457874656e64504352a265696e64657810646461746143010203"),
    (nsm.LockPCR(16), "a1674c6f636b504352a165696e64657810"),
    (nsm.LockPCRs(32), "a1684c6f636b50435273a16572616e67651820"),
    (nsm.DescribeNSM(), "6b44657363726962654e534d"),
    (nsm.GetRandom(), "6947657452616e646f6d"),
    (
        nsm.Attestation(),
        "a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6",
    ),
    (
        nsm.Attestation(b"ud", b"nn", b"pk"),
        "a16b4174746573746174696f6ea369757365725f64617461427564656e6f6e6365426e6e6a7075626c69635f6b657942706b",
    ),
]
RESPONSES = [
    (nsm.PcrDescribed(lock=True, data=bytes(48)), "a16b4465736372696265504352a2646c6f636bf564646174615830" + "00" * 48),
    (nsm.PcrExtended(bytes(48)), "a169457874656e64504352a164646174615830" + "00" * 48),
    (nsm.PcrLocked(), "674c6f636b504352"),
    (nsm.PcrsLocked(), "684c6f636b50435273"),
    (nsm.RandomBytes(bytes(256)), "a16947657452616e646f6da16672616e646f6d590100" + "00" * 256),
    (nsm.Attested(bytes(256)), "a16b4174746573746174696f6ea168646f63756d656e74590100" + "00" * 256),
    (
        nsm.NsmDescribed(1, 0, 0, "i-0123456789abcdef0-enc0123456789abcdef", 32, tuple(range(16)), "SHA384"),
        (
            "a16b44657363726962654e534da76d76657273696f6e5f6d616a6f72016d76657273696f6e5f6d696e6f72006d76657273696f6e5f7061746368"
            "00696d6f64756c655f69647827692d30313233343536373839616263646566302d656e6330313233343536373839616263646566686d61785f70"
            "63727318206b6c6f636b65645f7063727390000102030405060708090a0b0c0d0e0f6664696765737466534841333834"
        ),
    ),
    (nsm.Failed(nsm.ErrorCode.INVALID_ARGUMENT), "a1654572726f726f496e76616c6964417267756d656e74"),
    (nsm.Failed(nsm.ErrorCode.INVALID_INDEX), "a1654572726f726c496e76616c6964496e646578"),
    (nsm.Failed(nsm.ErrorCode.INVALID_RESPONSE), "a1654572726f726f496e76616c6964526573706f6e7365"),
    (nsm.Failed(nsm.ErrorCode.READ_ONLY_INDEX), "a1654572726f726d526561644f6e6c79496e646578"),
    (nsm.Failed(nsm.ErrorCode.INVALID_OPERATION), "a1654572726f7270496e76616c69644f7065726174696f6e"),
    (nsm.Failed(nsm.ErrorCode.BUFFER_TOO_SMALL), "a1654572726f726e427566666572546f6f536d616c6c"),
    (nsm.Failed(nsm.ErrorCode.INPUT_TOO_LARGE), "a1654572726f726d496e707574546f6f4c61726765"),
    (nsm.Failed(nsm.ErrorCode.INTERNAL_ERROR), "a1654572726f726d496e7465726e616c4572726f72"),
]


@pytest.mark.parametrize(("message", "hexadecimal"), REQUESTS)
def test_requests_are_the_bytes_of_the_rust_library(message: nsm.Request, hexadecimal: str) -> None:
    """A request encodes to the documented bytes, and decodes from them."""
    assert nsm.encode_request(message).hex() == hexadecimal
    assert nsm.decode_request(bytes.fromhex(hexadecimal)) == message


@pytest.mark.parametrize(("message", "hexadecimal"), RESPONSES)
def test_responses_are_the_bytes_that_clients_expect(message: nsm.Response, hexadecimal: str) -> None:
    """A response encodes to the documented bytes, and decodes from them."""
    assert nsm.encode_response(message).hex() == hexadecimal
    assert nsm.decode_response(bytes.fromhex(hexadecimal)) == message


@pytest.mark.parametrize(
    ("sent", "understood"),
    [
        ({"Attestation": {}}, nsm.Attestation()),
        ({"Attestation": {"nonce": "text", "other": 1}}, nsm.Attestation(nonce=b"text")),
        ({"ExtendPCR": {"data": "abc", "index": 16}}, nsm.ExtendPCR(16, b"abc")),
    ],
)
def test_what_existing_clients_send_is_understood(sent: object, understood: nsm.Request) -> None:
    """Keys in any order, unknown keys, missing fields and texts for bytes are taken (nsm.md §3)."""
    assert nsm.decode_request(cbor.encode(sent)) == understood


def test_an_integer_may_be_wider_than_necessary() -> None:
    """An index in the four-byte form is the same index."""
    data = bytes.fromhex("a16b4465736372696265504352a165696e6465781a00000005")
    assert nsm.decode_request(data) == nsm.DescribePCR(5)


@pytest.mark.parametrize(
    "sent",
    [
        {"GetRandom": {}},
        "LockPCR",
        {"DescribePCR": {}},
        {"DescribePCR": {"index": "1"}},
        {"DescribePCR": {"index": True}},
        {"DescribePCR": {"index": -1}},
        {"ExtendPCR": {"index": 16}},
        {"Attestation": {"nonce": 5}},
        {"Attestation": None},
        {"LockPCR": {"index": 1}, "LockPCRs": {"range": 1}},
        {1: {}},
        [],
        None,
        "SetCertificate",
    ],
)
def test_other_shapes_are_no_requests(sent: object) -> None:
    """Wrong names, shapes and types raise ProtocolError."""
    with pytest.raises(ProtocolError):
        nsm.decode_request(cbor.encode(sent))


@given(st.binary(max_size=64))
def test_any_bytes_are_a_request_or_a_protocol_error(data: bytes) -> None:
    """Nothing but ProtocolError comes out of the decoders, whatever goes in."""
    for decode in (nsm.decode_request, nsm.decode_response):
        with contextlib.suppress(ProtocolError):
            decode(data)


@given(
    st.builds(nsm.ExtendPCR, st.integers(0, 2**64 - 1), st.binary())
    | st.builds(nsm.Attestation, *[st.none() | st.binary()] * 3)
)
def test_requests_survive_a_round_trip(message: nsm.Request) -> None:
    """Decoding an encoded request gives the request."""
    assert nsm.decode_request(nsm.encode_request(message)) == message
