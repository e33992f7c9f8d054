"""Fuzz targets of what reaches the programs in an enclave: requests on loopback, kmstool's messages, KMS's answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache

from cryptography.hazmat.primitives.asymmetric import rsa

from alcove.errors import ProtocolError
from alcove.kms.recipient import seal
from alcove.sdk import sigv4
from alcove.sdk.cms import open_envelope, subject_public_key_info
from alcove.sdk.endpoint import Credentials
from alcove.sdk.errors import EnvelopeError
from alcove.sdk.http import Answer, AnswerReader
from alcove.sdk.servers.attestation import AttestationServer
from alcove.sdk.servers.kmstool import Conversation, Decrypt, Framer, MessageTooLargeError, encode
from alcove.sdk.servers.request import BadRequestError, Request, RequestReader


@cache
def _recipient() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _requests(data: bytes, step: int) -> list[Request] | None:
    reader, found = RequestReader(), []
    try:
        for at in range(0, len(data), step):
            reader.receive(data[at : at + step])
            while (request := reader.next_request()) is not None:
                found.append(request)
    except BadRequestError:
        return None
    return found


def request(data: bytes) -> None:
    """Requests or BadRequestError, however they are cut; each has an answer, and none of them is signed."""
    found = _requests(data, len(data) or 1)
    assert _requests(data, 7) == found
    for one in found or ():
        answer = AttestationServer(lambda **_: b"document")(one)
        assert answer.status in {200, 400, 403, 404, 405}
        try:
            sigv4.verify(
                one.headers, one.body, access_key_id="k", secret_access_key="s", session_token=None, region="r",
                service="kms", now=0.0,
            )  # fmt: skip
        except ValueError:
            continue
        raise AssertionError("somebody guessed the secret")


def answer(data: bytes) -> None:
    """An answer of KMS, none yet, or ProtocolError; however it is cut."""

    def read(step: int) -> Answer | str | None:
        reader = AnswerReader()
        try:
            for at in range(0, len(data), step):
                if found := reader.receive(data[at : at + step]):
                    return found
            return reader.receive(b"")
        except ProtocolError:
            return "refused"

    assert read(len(data) or 1) == read(5)


def kmstool(data: bytes) -> None:
    """Every message has a reply of one of two kinds, in JSON with a NUL at its end alone."""

    def decrypt(ciphertext: bytes, context: Mapping[str, str]) -> bytes:
        return ciphertext

    def make(region: str, credentials: Credentials) -> Decrypt:
        return decrypt

    conversation = Conversation(make, "r")
    try:
        for message in Framer().receive(data + b"\0"):
            reply = encode(conversation.answer(message))
            assert json.loads(reply[:-1])["Status"] in {"Ok", "Error"}
            assert reply.find(b"\0") == len(reply) - 1
    except MessageTooLargeError:
        return


def envelope(data: bytes) -> None:
    """An envelope opens, or is the one error."""
    try:
        opened = open_envelope(data, _recipient())
    except EnvelopeError:
        return
    assert isinstance(opened, bytes)


def requests() -> Iterable[bytes]:
    """A request of each server."""
    yield b"GET /v1/attestation?nonce=00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    head = "POST /v1/attestation HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    yield f'{head}content-length: 16\r\n\r\n{{"nonce":"QQ=="}}'.encode()
    scope, names = "k/19700101/r/kms/aws4_request", "host;x-amz-date;x-amz-target"
    signed = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={'0' * 64}"
    head = "POST / HTTP/1.1\r\nhost: h\r\nx-amz-date: 19700101T000000Z\r\nx-amz-target: t\r\n"
    yield f"{head}authorization: {signed}\r\n\r\n".encode()


def answers() -> Iterable[bytes]:
    """Answers of both framings."""
    yield b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    yield b"HTTP/1.1 400 Bad\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


def messages() -> Iterable[bytes]:
    """A conversation of kmstool's."""
    yield (
        b'{"Operation": "SetClient", "AwsAccessKeyId": "k", "AwsSecretAccessKey": "s"}\0'
        b'{"Operation": "Decrypt", "Ciphertext": "QQ==", "EncryptionContext": {"a": "b"}}'
    )


def envelopes() -> Iterable[bytes]:
    """What our KMS seals."""
    yield seal(b"secret", subject_public_key_info(_recipient().public_key()), content_key=bytes(32), iv=bytes(16))
