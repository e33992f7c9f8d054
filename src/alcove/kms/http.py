"""The HTTP face of the service: a plain ASGI callable, one POST dispatched on X-Amz-Target (kms.md §1)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from alcove.kms.call import Answer, Peer
from alcove.kms.claim import SignedRequest
from alcove.kms.errors import KmsError
from alcove.kms.material import KeyPending, make_pair
from alcove.kms.service import Service
from alcove.kms.sts import Sts, is_sts

MAX_BODY_BYTES: Final = 1 << 20  # §1.2
BODY_TIMEOUT: Final = 30.0  # seconds for a whole body to come
MAX_USER_AGENT: Final = 512
MAX_MAKERS: Final = 2  # RSA keys that are being made at once

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class KmsApplication:
    """The ASGI application of one service, with STS beside it."""

    def __init__(self, service: Service, sts: Sts) -> None:
        self._service = service
        self._sts = sts
        self._makers = asyncio.Semaphore(MAX_MAKERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request; other kinds of connection are not served."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        if scope["method"] == "GET" and scope["path"] == "/ping":
            await _respond(send, Answer(200, b'{"status":"healthy"}', ""))
            return
        try:
            body = await _body(receive)
            answer = await self._answer(_request(scope, body), _peer(scope))
        except KmsError as error:
            answer = Answer(error.status, error.body(), "")
        except _Gone:
            return
        await _respond(send, answer)

    async def _answer(self, request: SignedRequest, peer: Peer) -> Answer:
        if is_sts(request):
            return self._sts.handle(request, peer)
        try:
            return self._service.handle(request, peer)
        except KeyPending as pending:
            async with self._makers:
                made = await asyncio.to_thread(make_pair, pending.spec)
            return self._service.handle(request, peer, made)


class _Gone(Exception):  # noqa: N818 - not an error: the client left
    """The client closed before its body was whole."""


async def _body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise KmsError("RequestEntityTooLargeException", f"a body has at most {MAX_BODY_BYTES} bytes")
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise KmsError("RequestTimeoutException", "the body took too long") from None


def _request(scope: Scope, body: bytes) -> SignedRequest:
    headers = tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"])
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"").decode("latin-1")
    request = SignedRequest(scope["method"], path.decode("latin-1").partition("?")[0], query, headers, body)
    asked = request.method == "POST" or (request.method == "GET" and is_sts(request))  # presigned requests to STS
    if not asked or request.path != "/":
        raise KmsError("UnknownOperationException", "requests are made with POST /")
    return request


def _peer(scope: Scope) -> Peer:
    address = (scope.get("client") or ("",))[0]
    agents = [value for name, value in scope["headers"] if name.lower() == b"user-agent"]
    agent = agents[0].decode("latin-1")[:MAX_USER_AGENT] if agents else ""
    return Peer(address, agent, scope.get("scheme") == "https")


async def _respond(send: Send, answer: Answer) -> None:
    headers = [
        (b"content-type", answer.content_type.encode()),
        (b"content-length", str(len(answer.body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if answer.request_id:
        headers.append((b"x-amzn-requestid", answer.request_id.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
