"""kmstool-enclave's protocol: JSON texts that end in a NUL byte, both ways, on vsock port 3000 (sdk.md §6).

Core: bytes in, messages out; a message in, a reply out. What calls KMS is passed in.

    {"Operation": "SetClient", "AwsAccessKeyId", "AwsSecretAccessKey"[, "AwsSessionToken"][, "AwsRegion"]}
    {"Operation": "Decrypt", "Ciphertext": base64[, "EncryptionContext": {…}]}

The replies are AWS's, word for word, with one reply to one request: theirs sends an error after each plaintext. The
plaintext goes back to the parent: this is for programs that are written against it, not a pattern to follow.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from alcove.errors import AlcoveError
from alcove.sdk.endpoint import Credentials

MAX_MESSAGE: Final = 8192  # bytes with the NUL, as upstream
PORT: Final = 3000

Decrypt = Callable[[bytes, Mapping[str, str]], bytes]
"""(ciphertext, encryption context) → plaintext; raises AlcoveError."""
MakeClient = Callable[[str, Credentials], Decrypt]
"""(Region, credentials) → what decrypts; raises AlcoveError."""


class MessageTooLargeError(Exception):
    """A message is longer than the protocol allows; the connection ends."""


class Framer:
    """Cuts what comes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> Iterator[bytes]:
        """The messages that are whole.

        Raises:
            MessageTooLargeError: There is one that cannot be.
        """
        self._buffer += data
        while (end := self._buffer.find(b"\0")) >= 0:
            if end >= MAX_MESSAGE:
                raise MessageTooLargeError
            message = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            yield message
        if len(self._buffer) >= MAX_MESSAGE:
            raise MessageTooLargeError


class _RefusedError(Exception):
    """A request that gets an error, in AWS's words."""


class Conversation:
    """One connection: it sets a client, and asks it.

    Args:
        make_client: Makes a client of KMS.
        region: The Region that the enclave was started with; None when the parent must name it.
    """

    def __init__(self, make_client: MakeClient, region: str | None = None) -> None:
        self._make_client = make_client
        self._region = region
        self._decrypt: Decrypt | None = None

    def answer(self, message: bytes) -> dict[str, str]:
        """The reply to one message; nothing is raised."""
        try:
            return {"Status": "Ok"} | self._answer(message)
        except _RefusedError as refused:
            return error(str(refused))

    def _answer(self, message: bytes) -> dict[str, str]:
        try:
            request = json.loads(message)
        except (ValueError, RecursionError):
            raise _RefusedError("Error reading JSON object") from None
        if not isinstance(request, dict):
            raise _RefusedError("JSON is wrong type")
        if "Operation" not in request:
            raise _RefusedError("JSON structure incomplete")
        if not isinstance(request["Operation"], str):
            raise _RefusedError("Operation is wrong type")
        handler = {"SetClient": self._set_client, "Decrypt": self._decrypt_one}.get(request["Operation"])
        if handler is None:
            raise _RefusedError("Operation not recognized")
        return handler(request)

    def _set_client(self, request: dict[str, Any]) -> dict[str, str]:
        key, secret = request.get("AwsAccessKeyId"), request.get("AwsSecretAccessKey")
        token, region = request.get("AwsSessionToken"), request.get("AwsRegion")
        if not isinstance(key, str) or not isinstance(secret, str) or not isinstance(token, str | None):
            raise _RefusedError("Could not read credentials")
        if not isinstance(region, str | None) or (region is None) == (self._region is None):
            raise _RefusedError("Could not set region correctly, check configuration.")
        try:
            self._decrypt = self._make_client(region or self._region or "", Credentials(key, secret, token or None))
        except AlcoveError:
            raise _RefusedError("Could not create new client") from None
        return {}

    def _decrypt_one(self, request: dict[str, Any]) -> dict[str, str]:
        if self._decrypt is None:
            raise _RefusedError("Client not initialized")
        if not isinstance(request.get("Ciphertext"), str):
            raise _RefusedError("Message does not contain a Ciphertext")
        try:
            ciphertext = base64.b64decode(request["Ciphertext"], validate=True)
        except (binascii.Error, ValueError):
            raise _RefusedError("Ciphertext not a base64 string") from None
        context = request.get("EncryptionContext") or {}
        if not isinstance(context, dict) or not all(isinstance(value, str) for value in context.values()):
            raise _RefusedError("Could not decrypt ciphertext")
        try:
            plaintext = self._decrypt(ciphertext, context)
        except AlcoveError as problem:
            raise _RefusedError("Could not decrypt ciphertext") from problem
        return {"Message": base64.b64encode(plaintext).decode("ascii")}


def error(text: str) -> dict[str, str]:
    """An error's reply."""
    return {"Status": "Error", "Message": text}


def encode(reply: Mapping[str, str]) -> bytes:
    """A reply's bytes."""
    return json.dumps(reply).encode() + b"\0"
