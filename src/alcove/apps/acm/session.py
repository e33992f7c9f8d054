"""A session on a token: what it searches for, digests, signs, verifies, encrypts and decrypts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from alcove.apps.acm.cryptoki import Cka, Ckr, Refused, SessionState
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.mechanisms import Profile, Scheme, Spec
from alcove.apps.acm.objects import TokenObject
from alcove.apps.acm.operations import Digest, Encryption, Random, Signature
from alcove.apps.acm.token import Token
from alcove.apps.acm.values import Attribute, Mechanism, Size

MAX_FOUND: Final = 1024  # handles in one answer
_ENCRYPTING: Final = (Scheme.PKCS1, Scheme.RAW, Scheme.OAEP)
Answer = bytes | Size
_T = TypeVar("_T")


class Session:
    """One session; at most one operation of each kind at a time.

    Args:
        slot: Where the token was when the session was opened.
        token: The token that was in the slot then.
        flags: CK_SESSION_INFO.flags.
        logged_in: Whether the user is logged in to the token, or to one whose place it took.
        usable: Whether the token's objects may be used.
        random: Makes unpredictable bytes.
    """

    def __init__(
        self,
        slot: int,
        token: Token,
        flags: int,
        *,
        logged_in: Callable[[Token], bool],
        usable: Callable[[Token], bool],
        random: Random,
    ) -> None:
        self.slot, self.token, self.flags = slot, token, flags
        self._logged_in, self._usable, self._random = logged_in, usable, random
        self._found: Iterator[int] | None = None
        self._digest: Digest | None = None
        self._signature: Signature | None = None
        self._verification: Signature | None = None
        self._encryption: Encryption | None = None
        self._decryption: Encryption | None = None

    @property
    def logged_in(self) -> bool:
        """Whether private objects can be seen and used."""
        return self._logged_in(self.token)

    @property
    def state(self) -> SessionState:
        """CK_SESSION_INFO.state."""
        return SessionState.RO_USER if self.logged_in else SessionState.RO_PUBLIC

    def object(self, handle: int) -> TokenObject | None:
        """The object with a handle, of the token or of what took its place, if it can be seen."""
        return self._owned(handle, logged_in=self.logged_in)[1]

    def find_init(self, template: tuple[Attribute, ...]) -> None:
        """Begin a search."""
        _must_be_none(self._found)
        self._found = self.token.newest().find(template, logged_in=self.logged_in)

    def find(self, room: int) -> tuple[int, ...]:
        """The next handles, as many as there is room for."""
        found = _must_be_there(self._found)
        return tuple([handle for _, handle in zip(range(min(room, MAX_FOUND)), found, strict=False)])

    def find_final(self) -> None:
        """End the search."""
        _must_be_there(self._found)
        self._found = None

    def digest_init(self, mechanism: Mechanism) -> None:
        """Begin a hash."""
        _must_be_none(self._digest)
        spec = _spec(self.token.newest(), mechanism)
        if spec.scheme is not Scheme.DIGEST or spec.hash is None:
            raise Refused(Ckr.MECHANISM_INVALID)
        if mechanism.parameter:
            raise Refused(Ckr.MECHANISM_PARAM_INVALID)
        self._digest = Digest(spec.hash)

    def digest_update(self, data: bytes) -> None:
        """Hash more data."""
        _must_be_there(self._digest).update(data)

    def digest(self, data: bytes, room: int | None) -> Answer:
        """The hash, with the last of the data; its length when there is no room."""
        digest = _must_be_there(self._digest)
        if room is None or room < digest.length:
            return Size(digest.length)
        self._digest = None
        digest.update(data)
        return digest.finish()

    def sign_init(self, mechanism: Mechanism, handle: int) -> None:
        """Begin a signature."""
        _must_be_none(self._signature)
        spec, key, profile = self._keyed(mechanism, handle, Cka.SIGN)
        self._signature = Signature(key, spec, mechanism, profile, self._random)

    def sign_update(self, data: bytes) -> None:
        """Sign more data; a mistake ends the operation."""
        try:
            _must_be_there(self._signature).update(data)
        except Refused:
            self._signature = None
            raise

    def sign(self, data: bytes, room: int | None) -> Answer:
        """The signature; its length when there is no room, and then the operation goes on."""
        signature = _must_be_there(self._signature)
        if room is None or room < signature.length:
            return Size(signature.length)
        self._signature = None
        self._use()
        return signature.sign(data)

    def verify_init(self, mechanism: Mechanism, handle: int) -> None:
        """Begin a verification."""
        _must_be_none(self._verification)
        spec, key, profile = self._keyed(mechanism, handle, Cka.VERIFY)
        self._verification = Signature(key, spec, mechanism, profile, self._random)

    def verify_update(self, data: bytes) -> None:
        """Verify more data; a mistake ends the operation."""
        try:
            _must_be_there(self._verification).update(data)
        except Refused:
            self._verification = None
            raise

    def verify(self, data: bytes, signature: bytes) -> None:
        """Return when the signature is right; the operation ends in any case."""
        verification, self._verification = _must_be_there(self._verification), None
        verification.verify(signature, data)

    def encrypt_init(self, mechanism: Mechanism, handle: int) -> None:
        """Begin an encryption."""
        _must_be_none(self._encryption)
        spec, key, _ = self._keyed(mechanism, handle, Cka.ENCRYPT)
        self._encryption = Encryption(key, spec, mechanism, self._random)

    def encrypt(self, data: bytes, room: int | None) -> Answer:
        """The ciphertext; its length when there is no room."""
        encryption = _must_be_there(self._encryption)
        if room is None or room < encryption.length:
            return Size(encryption.length)
        self._encryption = None
        return encryption.encrypt(data)

    def decrypt_init(self, mechanism: Mechanism, handle: int) -> None:
        """Begin a decryption."""
        _must_be_none(self._decryption)
        spec, key, _ = self._keyed(mechanism, handle, Cka.DECRYPT)
        self._decryption = Encryption(key, spec, mechanism, self._random)

    def decrypt(self, data: bytes, room: int | None) -> Answer:
        """The plaintext; how long it may be, or is, when there is no room."""
        decryption, self._decryption = _must_be_there(self._decryption), None
        if room is None:
            self._decryption = decryption
            return Size(decryption.length)
        self._use()
        plain = decryption.decrypt(data)
        if room < len(plain):
            self._decryption = decryption
            return Size(len(plain))
        return plain

    def _owned(self, handle: int, *, logged_in: bool) -> tuple[Token, TokenObject | None]:
        owner = self.token.owner(handle)
        if owner is None or not self._usable(owner):
            return self.token.newest(), None
        return owner, owner.object(handle, logged_in=logged_in)

    def _keyed(self, mechanism: Mechanism, handle: int, use: Cka) -> tuple[Spec, KeyPair, Profile]:
        """The mechanism and the key, if the one may be used with the other, and what the key is for."""
        owner, found = self._owned(handle, logged_in=True)
        spec = _spec(owner, mechanism)
        if found is None or found.key is None:
            raise Refused(Ckr.KEY_HANDLE_INVALID)
        if found.private and not self.logged_in:
            raise Refused(Ckr.USER_NOT_LOGGED_IN)
        if use is Cka.SIGN or use is Cka.VERIFY:
            fits = spec.scheme is not Scheme.DIGEST and spec.scheme is not Scheme.OAEP
        else:
            fits = spec.hash is None and spec.scheme in _ENCRYPTING
        if not fits:
            raise Refused(Ckr.MECHANISM_INVALID)
        if spec.key_type is not found.key.type:
            raise Refused(Ckr.KEY_TYPE_INCONSISTENT)
        if not found.allows(use):
            raise Refused(Ckr.KEY_FUNCTION_NOT_PERMITTED)
        return spec, found.key, owner.profile

    def _use(self) -> None:
        """Count a use of a private key, if one more is allowed now."""
        if not self.logged_in:
            raise Refused(Ckr.USER_NOT_LOGGED_IN)
        token = self.token.newest()
        if not token.rate.take():
            raise Refused(Ckr.FUNCTION_FAILED)
        token.uses += 1


def _spec(token: Token, mechanism: Mechanism) -> Spec:
    spec = token.specs.get(mechanism.type)
    if spec is None:
        raise Refused(Ckr.MECHANISM_INVALID)
    return spec


def _must_be_none(operation: object | None) -> None:
    if operation is not None:
        raise Refused(Ckr.OPERATION_ACTIVE)


def _must_be_there(operation: _T | None) -> _T:
    if operation is None:
        raise Refused(Ckr.OPERATION_NOT_INITIALIZED)
    return operation
