"""boto3 programs that know nothing of enclaves, attested: one line at their start (sdk.md §3).

    import boto3
    from alcove.sdk.boto3 import attested, install

    install()                                   # boto3's default session; or install(session)
    kms = boto3.client("kms")                   # made after that
    kms.decrypt(CiphertextBlob=blob)["Plaintext"]

    with attested(client):                      # or for one client, and for a while
        client.generate_data_key(KeyId=key, KeySpec="AES_256")

Decrypt, GenerateDataKey, GenerateDataKeyPair, DeriveSharedSecret and GenerateRandom then carry a fresh document each,
and return their plaintext in the usual member, opened here. All other calls, and those that bring a `Recipient` of
their own, are left alone. aiobotocore's sessions and clients are taken too; there the work is done in a thread.

What is refused, with errors of this SDK: an answer with the plaintext in the open or without an envelope, another key
than the one that was asked for, and a KMS that is not reached by https, whose answers the parent could write.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, Final, TypeVar

from alcove.errors import UsageError
from alcove.sdk.attested import Attester, RecipientKey
from alcove.sdk.recipient import ENVELOPE, AttestedCall, attested_call

_ID: Final = "alcove-attested"
_CONTEXT: Final = "alcove_attested_call"
_AIO_CLASSES: Final = {"aiobotocore.session": "AioSession", "aiobotocore.client": "AioBaseClient"}

_T = TypeVar("_T")


def install(
    session: Any = None,
    *,
    keys: Sequence[str] = (),
    attester: Attester | None = None,
    unsafe_plain_http: bool = False,
) -> None:
    """Attest the KMS calls of every client that `session` makes from now on; once is enough.

    Args:
        session: A session of boto3, botocore, aiobotocore or aioboto3, or one client; boto3's default session when
            None, which `boto3.client` uses.
        keys: ARNs or ids of the keys that answers may name. Name them: a program that decrypts without a KeyId, or
            with an alias, takes every key otherwise, and the parent chooses the ciphertext (sdk.md §9).
        attester: What makes documents; the enclave's module when None, opened on the first call.
        unsafe_plain_http: Accept a KMS that is not reached by https: whoever carries the bytes then writes the answers.
    """
    target = _default_session() if session is None else session
    events = _events(target)
    for name, handler in _Hooks(keys, attester, unsafe_plain_http).handlers(target).items():
        events.unregister(name, unique_id=f"{_ID}-{name}")  # the last installation is the one that counts
        events.register(name, handler, unique_id=f"{_ID}-{name}")


@contextlib.contextmanager
def attested(
    client: _T, *, keys: Sequence[str] = (), attester: Attester | None = None, unsafe_plain_http: bool = False
) -> Iterator[_T]:
    """Attest the KMS calls that `client` makes in the block, whichever thread makes them.

    Args:
        client: A KMS client of boto3 or aiobotocore.
        keys: As for `install`.
        attester: As for `install`.
        unsafe_plain_http: As for `install`.
    """
    events = _events(client)
    handlers = _Hooks(keys, attester, unsafe_plain_http).handlers(client)
    for name, handler in handlers.items():
        events.register(name, handler)
    try:
        yield client
    finally:
        for name, handler in handlers.items():
            events.unregister(name, handler)


class _Hooks:
    """The handlers of botocore's events, with the key that envelopes are made for."""

    def __init__(self, keys: Sequence[str], attester: Attester | None, plain_http: bool) -> None:
        self._keys = tuple([keys] if isinstance(keys, str) else keys)
        self._key = RecipientKey(attester)
        self._plain_http = plain_http

    def handlers(self, target: Any) -> dict[str, Callable[..., Any]]:
        """The events to listen to, each with what it calls."""
        found: dict[str, Callable[..., Any]]
        found = {"before-parameter-build": self.before, "before-call": self.check_url, "after-call": self.after}
        is_aio = _is_aio(target)
        return {f"{event}.kms": _in_thread(handler) if is_aio else handler for event, handler in found.items()}

    def before(self, params: MutableMapping[str, Any], model: Any, context: dict[str, Any], **_: Any) -> None:
        """Add Recipient to a call's parameters."""
        call = attested_call(model.name, params, self._keys)
        if call is not None:
            params["Recipient"] = self._key.parameter()
            context[_CONTEXT] = self, call

    def check_url(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        """Refuse to send a document where the parent would write the answer."""
        if self._call(context) and not self._plain_http and not str(params["url"]).startswith("https://"):
            raise UsageError(
                f"KMS at {params['url']} is not reached by https",
                hint="TLS must end in the enclave: without it the parent can write KMS's answers",
            )

    def after(self, http_response: Any, parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        """Check an answer, and put the plaintext where a program looks for it."""
        call = self._call(context)
        if call is None or http_response.status_code >= 300:
            return
        call.check_answer(parsed)
        parsed[call.member] = call.check_plaintext(self._key.open(parsed.pop(ENVELOPE)))

    def _call(self, context: dict[str, Any]) -> AttestedCall | None:
        """The call, when it is these hooks that made the document: a client may have several."""
        owner, call = context.get(_CONTEXT, (None, None))
        return call if owner is self else None


def _default_session() -> Any:
    import boto3  # noqa: PLC0415 - the SDK works without it

    if boto3.DEFAULT_SESSION is None:
        boto3.setup_default_session()
    return boto3.DEFAULT_SESSION


def _events(target: Any) -> Any:
    """The event emitter of a session or client."""
    if hasattr(target, "meta"):
        if target.meta.service_model.service_name != "kms":
            raise UsageError(f"a client of {target.meta.service_model.service_name} makes no calls that KMS attests")
        return target.meta.events
    if hasattr(target, "events"):  # boto3's and aioboto3's
        return target.events
    if hasattr(target, "get_component"):  # botocore's and aiobotocore's
        return target.get_component("event_emitter")
    raise UsageError(f"{type(target).__name__} is neither a session nor a client of boto3")


def _is_aio(target: Any) -> bool:
    """Whether its events are awaited; aioboto3 keeps aiobotocore's session in `_session`."""
    for module, name in _AIO_CLASSES.items():
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and isinstance(getattr(target, "_session", target), known):
            return True
    return False


def _in_thread(handler: Callable[..., Any]) -> Callable[..., Any]:
    import asyncio  # noqa: PLC0415 - a second under emulation, for programs that have it already

    async def run(**arguments: Any) -> None:
        await asyncio.to_thread(handler, **arguments)

    return run
