"""Sealing small secrets under an AES key that never leaves its token (AES-GCM, PKCS#11 v2.40 §2.12.3)."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.mechanisms import GCMParams

from alcove.errors import MachineError, UsageError
from alcove.pkcs11.keys import reason
from alcove.pkcs11.token import open_session
from alcove.pkcs11.uri import Pkcs11Uri

NONCE_BYTES: Final = 12
_REFUSED: Final = (  # what tokens say of a changed ciphertext, or of another key's
    pkcs11.EncryptedDataInvalid, pkcs11.EncryptedDataLenRange, pkcs11.GeneralError, pkcs11.FunctionFailed,
)  # fmt: skip


class SealingKey:
    """An AES key of a token, while its session is open."""

    def __init__(self, key: Any) -> None:
        self._key = key

    def seal(self, secret: bytes, bound: bytes) -> bytes:
        """Nonce, ciphertext and tag; `bound` is authenticated with the secret.

        Raises:
            MachineError: The token refused.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        try:
            parameters = GCMParams(nonce, bound)
            return nonce + bytes(self._key.encrypt(secret, mechanism=Mechanism.AES_GCM, mechanism_param=parameters))
        except pkcs11.PKCS11Error as error:
            raise MachineError(f"the token did not encrypt: {reason(error)}") from error

    def open(self, sealed: bytes, bound: bytes) -> bytes | None:
        """The secret; None when this key did not seal it, or it was changed.

        Raises:
            MachineError: The token failed.
        """
        parameters = GCMParams(sealed[:NONCE_BYTES], bound)
        try:
            opened = self._key.decrypt(sealed[NONCE_BYTES:], mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
        except _REFUSED:
            return None
        except pkcs11.PKCS11Error as error:
            raise MachineError(f"the token did not decrypt: {reason(error)}") from error
        return bytes(opened)


@contextlib.contextmanager
def open_sealing_key(uri: str, *, environment: Mapping[str, str]) -> Iterator[SealingKey]:
    """The AES key that a URI names, usable until the block ends; module and PIN as in `open_key`.

    Raises:
        UsageError: The URI, the PIN, or a key that is not there, not alone or not fit.
        MachineError: The module or the token.
    """
    where = Pkcs11Uri.parse(uri)
    with open_session(where, environment=environment) as session:
        yield SealingKey(_find(session, where))


def _find(session: Any, uri: Pkcs11Uri) -> Any:
    if uri.type not in {None, "secret-key"}:
        raise UsageError(f"the URI names an object of type {uri.type}", hint="leave out type=, or use type=secret-key")
    named = {Attribute.LABEL: uri.object, Attribute.ID: uri.id}
    wanted = {name: value for name, value in named.items() if value is not None}
    kinds = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
    found = list(session.get_objects({**kinds, **wanted}))
    if not found:
        raise UsageError("no AES key on the token matches", hint="make one on the token, and name it with object=LABEL")
    if len(found) > 1:
        raise UsageError("several AES keys on the token match", hint="name one with object= and id=")
    if not (found[0][Attribute.ENCRYPT] and found[0][Attribute.DECRYPT]):
        raise UsageError("the key on the token is not for encryption", hint="it needs CKA_ENCRYPT and CKA_DECRYPT")
    return found[0]
