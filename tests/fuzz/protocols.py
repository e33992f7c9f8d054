"""Fuzz targets of what peers send: documents, certificates, requests of the guest, messages of the virtual machine."""

from __future__ import annotations

import contextlib
import json

from alcove.attestation import report
from alcove.attestation.certificate import parse_certificate
from alcove.attestation.document import parse_document
from alcove.codec import cbor
from alcove.devices.nsm.messages import MAX_RESPONSE, decode_request, decode_response, encode_request, encode_response
from alcove.devices.nsm.module import NsmModule
from alcove.devices.vhost_user.events import VringStopped
from alcove.devices.vhost_user.messages import Feature, ProtocolFeature
from alcove.devices.vhost_user.session import Session
from alcove.devices.vsock.events import Closing, Data, Dial
from alcove.devices.vsock.muxer import Muxer
from alcove.devices.vsock.packet import HEADER_SIZE, Header
from alcove.errors import AttestationError, ProtocolError
from alcove.types import FIRST_ENCLAVE_CID


def cbor_item(data: bytes) -> None:
    """One item, or CborError; what was decoded encodes to what decodes alike, unless it holds a float."""
    try:
        item = cbor.decode(data)
    except cbor.CborError:
        return
    try:
        packed = cbor.encode(item)
    except TypeError:  # floats are read and never written
        return
    assert cbor.decode(packed) == item


def document(data: bytes) -> None:
    """A document is parsed or an AttestationError; what was parsed can be shown."""
    try:
        parsed = parse_document(data)
    except AttestationError:
        return
    "\n".join(report.describe(parsed)).encode()
    json.dumps(report.to_json(parsed), allow_nan=False).encode()


def certificate(data: bytes) -> None:
    """A certificate of the chain's shape, whose encoding is kept as it came, or ValueError."""
    try:
        parsed = parse_certificate(data)
    except ValueError:
        return
    assert parsed.der == data
    assert parsed.signed in data
    assert not parsed.is_signed_by(parsed) or parsed.issuer == parsed.subject


def nsm(data: bytes) -> None:
    """Every request has an answer within the limit; requests and responses that are read are written alike."""
    module = NsmModule("i-0-enc0", {}, lambda *_: b"document", bytes)
    answer = module.handle(data)
    assert len(answer) <= MAX_RESPONSE
    decode_response(answer)
    with contextlib.suppress(ProtocolError):
        request = decode_request(data)
        assert decode_request(encode_request(request)) == request
    with contextlib.suppress(ProtocolError):
        response = decode_response(data)
        assert decode_response(encode_response(response)) == response


def vhost_user(data: bytes) -> None:
    """Messages mean the same in one piece and in pieces, until the protocol is broken; replies are bounded."""
    assert _drive(data, len(data) or 1) == _drive(data, 1 + len(data) % 13)


def _drive(data: bytes, step: int) -> tuple[list[object], bytes]:
    session = Session(
        features=Feature.VERSION_1 | Feature.VHOST_USER_PROTOCOL,
        protocol_features=ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG,
        queues=3,
        config=bytes(8),
    )
    seen: list[object] = []
    sent = b""
    for at in range(0, len(data), step):
        session.receive_data(data[at : at + step])
        try:
            for event in session.events():
                seen.append(event)
                if isinstance(event, VringStopped):
                    session.answer_vring_base(7)
        except ProtocolError as error:
            return [*seen, str(error)], sent + session.data_to_send()
        sent += session.data_to_send()
    assert len(sent) <= 2 * len(data) + 1024
    return seen, sent


def vsock(data: bytes) -> None:
    """Packets of a guest, one after the other: each is taken, answered or refused, and what waits is bounded."""
    muxer = Muxer(FIRST_ENCLAVE_CID)
    for at in range(0, len(data) - HEADER_SIZE + 1, HEADER_SIZE):
        header = Header.parse(data[at : at + HEADER_SIZE])
        assert header.pack() == data[at : at + HEADER_SIZE]
        for event in muxer.receive(header, at % 512):
            if isinstance(event, Dial):
                (muxer.failed if header.flags & 4 else muxer.connected)(event.connection)
            elif isinstance(event, Data):
                muxer.forwarded(event.connection, event.length)
            elif isinstance(event, Closing):
                muxer.flushed(event.connection)
        while (control := muxer.next_control()) is not None:
            assert Header.parse(control.pack()) == control
    assert len(muxer) <= len(data) // HEADER_SIZE
