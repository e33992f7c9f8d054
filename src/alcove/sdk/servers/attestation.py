"""Attestation documents by HTTP on the enclave's loopback, for programs in any language.

    GET  /v1/attestation?nonce=HEX[&user_data=HEX]
    POST /v1/attestation   {"nonce": base64, "user_data": base64, "public_key": PEM}, each or none

Both answer with the document, application/cbor. Core: a request and a maker of documents in, an answer out.

A document with a public key is worth a secret: KMS answers whoever holds the private half. So a key is taken by POST
with `content-type: application/json` alone, which a link, a form or a fetch that an attacker made the application
follow does not send; and the `host` must be the loopback's.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from alcove.errors import AlcoveError
from alcove.sdk.servers.request import Request, Response

PATH: Final = "/v1/attestation"
MAX_FIELD: Final = 1024  # bytes (nsm.md §7): verifiers refuse more
FIELDS: Final = ("nonce", "user_data", "public_key")
_HOST = re.compile(r"(127\.\d+\.\d+\.\d+|localhost|\[::1\])(:\d+)?")
_PEM = re.compile(r"\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+?)-----END PUBLIC KEY-----\s*")

Attest = Callable[..., bytes]
"""(user_data=, nonce=, public_key=), bytes or None each → document; raises AlcoveError."""


class AttestationServer:
    """Answers the requests.

    Args:
        attest: Makes a document.
    """

    def __init__(self, attest: Attest) -> None:
        self._attest = attest

    def __call__(self, request: Request) -> Response:
        """The answer to one request; nothing is raised."""
        path, _, query = request.target.partition("?")
        if path != PATH:
            return _text(404, f"there is only {PATH}")
        if not _HOST.fullmatch(request.headers.get("host", "")):
            return _text(403, "the host is not this enclave's loopback")
        try:
            if request.method == "GET":
                fields = _from_query(query)
            elif request.method == "POST" and not query:
                fields = _from_json(request)
            else:
                return _text(405, "use GET or POST")
        except ValueError as error:
            return _text(400, str(error))
        try:
            return Response(200, self._attest(**fields), "application/cbor")
        except AlcoveError as error:
            return _text(500, str(error))


def _from_query(query: str) -> dict[str, bytes]:
    fields: dict[str, bytes] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in ("nonce", "user_data") or name in fields:
            raise ValueError("a query has nonce and user_data, once each; a public_key comes by POST")
        try:
            fields[name] = _limited(name, bytes.fromhex(value))
        except ValueError:
            raise ValueError(f"{name} is not hexadecimal, or has more than {MAX_FIELD} bytes") from None
    return fields


def _from_json(request: Request) -> dict[str, bytes]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ValueError("the content-type must be application/json")
    try:
        given = json.loads(request.body or b"{}")
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or not given.keys() <= set(FIELDS):
        raise ValueError(f"the body is a JSON object of {', '.join(FIELDS)}")
    return {name: _limited(name, _decoded(name, value)) for name, value in _present(given).items()}


def _present(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _decoded(name: str, value: object) -> bytes:
    """Base64; a public key may also be PEM, and is then its whole SubjectPublicKeyInfo."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")  # noqa: TRY004 - it is the peer's, not the program's
    pem = _PEM.fullmatch(value) if name == "public_key" else None
    try:
        return base64.b64decode("".join(pem[1].split()) if pem else value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} is not base64{' or PEM' if name == 'public_key' else ''}") from None


def _limited(name: str, value: bytes) -> bytes:
    if len(value) > MAX_FIELD:
        raise ValueError(f"{name} has more than {MAX_FIELD} bytes")
    return value


def _text(status: int, line: str) -> Response:
    return Response(status, f"{line}\n".encode(), "text/plain")
