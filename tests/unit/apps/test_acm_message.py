"""p11-kit's messages: what is read is written again, and nothing but the protocol's errors comes of other bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.apps.acm import message
from alcove.apps.acm.calls import BY_NAME, CALLS
from alcove.apps.acm.cryptoki import Cka, Ckm, Ckr, Refused
from alcove.apps.acm.message import Frame, FrameReader
from alcove.apps.acm.values import (
    PSS_MECHANISMS,
    Attribute,
    Kind,
    Mechanism,
    OaepParameters,
    PssParameters,
    Room,
    Size,
    kind_of,
)
from alcove.errors import ProtocolError

ulongs = st.integers(0, 2**64 - 1)
u32s = st.integers(0, 2**32 - 1)
small = st.binary(max_size=40)


def values_of(attribute: int) -> st.SearchStrategy[Any]:
    """Values of an attribute's kind."""
    match kind_of(attribute):
        case Kind.BYTE:
            return st.integers(0, 255)
        case Kind.ULONG:
            return ulongs
        case Kind.DATE:
            return st.sampled_from([b"", b"20260101"])
        case Kind.MECHANISMS:
            return st.lists(ulongs, max_size=5).map(tuple)
        case Kind.ATTRIBUTES:
            return st.just((Attribute(Cka.SIGN, 1),)) | st.just(())
        case _:
            return small


attributes = st.lists(
    (st.sampled_from(Cka) | u32s).flatmap(
        lambda kind: st.builds(Attribute, st.just(int(kind)), st.none() | values_of(kind))
    ),
    max_size=6,
).map(tuple)
plain_rooms = [kind for kind in Cka if kind_of(kind) is not Kind.ATTRIBUTES]
mechanisms = (
    st.sampled_from(sorted(set(Ckm) - PSS_MECHANISMS - {Ckm.RSA_PKCS_OAEP})).map(lambda kind: Mechanism(int(kind)))
    | st.builds(
        Mechanism, st.sampled_from(sorted(PSS_MECHANISMS)).map(int), st.builds(PssParameters, ulongs, ulongs, ulongs)
    )
    | st.builds(Mechanism, st.just(9), st.builds(OaepParameters, ulongs, ulongs, ulongs, st.none() | small))
)
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 255),
    "u": ulongs,
    "v": st.tuples(st.integers(0, 255), st.integers(0, 255)),
    "s": small,
    "z": small | st.none(),
    "ay": small | st.none() | st.builds(Size, u32s),
    "au": st.lists(ulongs, max_size=6).map(tuple) | st.builds(Size, u32s),
    "fy": st.none() | st.integers(0, 2**32 - 2),
    "fu": st.none() | st.integers(0, 2**32 - 2),
    "aA": attributes,
    "fA": st.lists(
        st.builds(Room, st.sampled_from(plain_rooms).map(int), st.none() | st.integers(1, 2**32 - 1)), max_size=6
    ).map(tuple),
    "M": mechanisms,
}
requests = st.sampled_from(list(CALLS.values())).flatmap(
    lambda call: st.tuples(st.just(call), st.tuples(*[PARTS[part] for part in message.parts(call.request)]))
)
responses = st.sampled_from([call for call in CALLS.values() if "P" not in call.response]).flatmap(
    lambda call: st.tuples(st.just(call), st.tuples(*[PARTS[part] for part in message.parts(call.response)]))
)


def test_the_table_has_every_call() -> None:
    """acm.md §7: 89 calls, numbered as p11-kit numbers them."""
    assert len(CALLS) == 89
    numbers = {"C_Initialize": 1, "C_Login": 18, "C_Sign": 43, "C_WaitForSlotEvent": 65, "C_MessageVerifyFinal": 87}
    assert {name: BY_NAME[name].id for name in numbers} == numbers
    assert BY_NAME["C_DeriveKey2"].id == 89


@given(requests, st.booleans())
def test_a_request_comes_back_as_it_was(case: tuple[Any, Any], new: bool) -> None:
    """Any call with any arguments, in both encodings of mechanisms."""
    call, arguments = case
    assert message.parse_request(message.pack_request(call, arguments, new=new), new=new) == (call, arguments)


@given(responses)
def test_a_response_comes_back_as_it_was(case: tuple[Any, Any]) -> None:
    """Any results of any call."""
    call, results = case
    assert message.parse_response(message.pack_response(call, results), call) == results


@given(st.sampled_from(Ckr))
def test_an_error_comes_back_as_it_was(ckr: Ckr) -> None:
    """A return value, whatever the call was."""
    with pytest.raises(Refused) as refused:
        message.parse_response(message.pack_error(ckr), BY_NAME["C_Sign"])
    assert refused.value.ckr is ckr


@given(st.sampled_from(list(CALLS.values())), st.binary(max_size=200), st.booleans())
def test_any_arguments_are_read_or_refused(call: Any, arguments: bytes, new: bool) -> None:
    """Any bytes behind a right signature: a request that is written as the same bytes, or one of the two errors."""
    signature = call.request.encode()
    body = call.id.to_bytes(4) + len(signature).to_bytes(4) + signature + arguments
    try:
        request = message.parse_request(body, new=new)
    except (ProtocolError, Refused):
        return
    if "fA" not in call.request:  # buffers within buffers are passed over
        assert message.pack_request(request.call, request.arguments, new=new) == body


@given(st.binary(max_size=300), st.booleans())
def test_any_body_is_read_or_refused(body: bytes, new: bool) -> None:
    """Any bytes at all."""
    try:
        message.parse_request(body, new=new)
    except (ProtocolError, Refused):
        return


frames = st.lists(st.builds(Frame, st.integers(1, 2**32 - 1), small, st.binary(max_size=20)), max_size=5)


@given(st.integers(0, 255), frames, st.data())
def test_frames_do_not_depend_on_how_they_arrive(version: int, sent: list[Frame], data: st.DataObject) -> None:
    """However the stream is cut, the version and the same frames come out."""
    stream = bytes([version]) + b"".join(frame.pack() for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = FrameReader()
    received: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.receive(stream[start:end])
    assert (reader.version, received) == (version, sent)


@pytest.mark.parametrize(
    "header",
    [(0, 0, 0), (1, message.MAX_OPTIONS + 1, 0), (1, 0, message.MAX_BODY + 1), (1, 2**32 - 1, 2**32 - 1)],
)
def test_a_frame_beyond_the_limits_is_refused_at_its_header(header: tuple[int, int, int]) -> None:
    """Nothing is collected for a length that will not be taken, and code 0 is nobody's."""
    with pytest.raises(ProtocolError):
        FrameReader().receive(b"\0" + b"".join(number.to_bytes(4) for number in header))


def test_the_largest_frame_is_taken() -> None:
    """A body of exactly the limit, in pieces, is one frame."""
    stream = b"\0" + Frame(1, bytes(message.MAX_BODY)).pack()
    reader = FrameReader()
    assert reader.receive(stream[:-1]) == []
    assert [len(frame.body) for frame in reader.receive(stream[-1:])] == [message.MAX_BODY]
