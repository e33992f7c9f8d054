"""One connection's view of the device: its sessions, its logins, and the call for each request (acm.md §5, §7).

A request that the device will not do gets PKCS#11's return value for it; one that cannot be read is a ProtocolError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from alcove.apps.acm import message
from alcove.apps.acm.calls import BY_NAME, CALLS, Call
from alcove.apps.acm.cryptoki import (
    UNAVAILABLE,
    Ckr,
    Refused,
    SessionFlag,
    SlotFlag,
    TokenFlag,
    UserType,
)  # fmt: skip
from alcove.apps.acm.objects import TokenObject
from alcove.apps.acm.session import Session
from alcove.apps.acm.token import MAX_PIN, MIN_PIN, Slots, Token
from alcove.apps.acm.values import Attribute, Mechanism, Room, Size, length_of

MAX_SESSIONS: Final = 1024
MAX_WRONG_PINS: Final = 16  # on one connection; others are not disturbed
MAX_RANDOM: Final = 4096
CRYPTOKI_VERSION: Final = (2, 40)
LIBRARY_VERSION: Final = (1, 0)
MANUFACTURER: Final = "Amazon"  # AWS's names, which configurations written for AWS have in their URIs (acm.md §4)
MODEL: Final = "p11ne-token"
INITIALIZE: Final = BY_NAME["C_Initialize"].id
_FUNCTIONS: Final = {  # C_GetSlotList is _get_slot_list
    call.id: re.sub(r"(?<=[a-z])(?=[A-Z])", "_", call.name.removeprefix("C")).lower() for call in CALLS.values()
}
_NONE: Final = ()


class Client:
    """Answers the requests of one connection, one after the other.

    Args:
        slots: The device, which all connections share.
        random: Makes unpredictable bytes.
    """

    def __init__(self, slots: Slots, random: Callable[[int], bytes] = os.urandom) -> None:
        self._slots, self._random = slots, random
        self._initialized = False
        self._sessions: dict[int, Session] = {}
        self._next_session = 1
        self._logged_in: set[object] = set()  # lines of tokens
        self._wrong_pins = 0
        self._functions: dict[int, Callable[..., Sequence[Any]]] = {
            number: getattr(self, name) for number, name in _FUNCTIONS.items() if hasattr(self, name)
        }

    def handle(self, body: bytes, *, new: bool) -> bytes:
        """The body of the answer to a request.

        Args:
            body: The request's.
            new: How the client encodes mechanisms; see `values.read_mechanism`.

        Raises:
            ProtocolError: It is malformed.
        """
        try:
            request = message.parse_request(body, new=new)
            function = self._function(request.call)
            return message.pack_response(request.call, function(*request.arguments))
        except Refused as refused:
            return message.pack_error(refused.ckr)

    def _function(self, call: Call) -> Callable[..., Sequence[Any]]:
        """What does a call; each such method has its name, and takes and gives what the table of calls says."""
        function = self._functions.get(call.id)
        if function is None:
            raise Refused(Ckr.FUNCTION_NOT_SUPPORTED)
        if not self._initialized and call.id != INITIALIZE:
            raise Refused(Ckr.CRYPTOKI_NOT_INITIALIZED)
        return function

    def _initialize(self, handshake: bytes | Size | None, _flag: int, _reserved: object) -> Sequence[Any]:
        if handshake != message.HANDSHAKE:
            raise Refused(Ckr.GENERAL_ERROR)
        if self._initialized:
            raise Refused(Ckr.CRYPTOKI_ALREADY_INITIALIZED)
        self._initialized = True
        return _NONE

    def _finalize(self) -> Sequence[Any]:
        self._sessions.clear()
        self._logged_in.clear()
        self._initialized = False
        return _NONE

    def _get_info(self) -> Sequence[Any]:
        return CRYPTOKI_VERSION, _padded(MANUFACTURER, 32), 0, _padded("p11ne", 32), LIBRARY_VERSION

    def _get_slot_list(self, _present: int, room: int | None) -> Sequence[Any]:
        return (_listed(self._slots.ids(), room),)

    def _get_slot_info(self, slot: int) -> Sequence[Any]:
        self._slots.token(slot)
        flags = SlotFlag.TOKEN_PRESENT | SlotFlag.REMOVABLE_DEVICE
        return _padded("p11ne-slot", 64), _padded(MANUFACTURER, 32), flags, LIBRARY_VERSION, LIBRARY_VERSION

    def _get_token_info(self, slot: int) -> Sequence[Any]:
        token = self._slots.token(slot)
        flags = TokenFlag.RNG | TokenFlag.WRITE_PROTECTED | TokenFlag.LOGIN_REQUIRED | TokenFlag.USER_PIN_INITIALIZED
        flags |= TokenFlag.TOKEN_INITIALIZED | TokenFlag.SO_PIN_LOCKED
        names = _padded(token.label, 32), _padded(MANUFACTURER, 32), _padded(MODEL, 16), _padded(serial(slot), 16)
        open_here = sum(1 for session in self._sessions.values() if session.token.line is token.line)
        memory = (UNAVAILABLE,) * 4
        counts = MAX_SESSIONS, open_here, 0, 0, MAX_PIN, MIN_PIN
        return *names, flags, *counts, *memory, LIBRARY_VERSION, LIBRARY_VERSION, b" " * 16

    def _get_mechanism_list(self, slot: int, room: int | None) -> Sequence[Any]:
        return (_listed(list(self._slots.token(slot).specs), room),)

    def _get_mechanism_info(self, slot: int, kind: int) -> Sequence[Any]:
        spec = self._slots.token(slot).specs.get(kind)
        if spec is None:
            raise Refused(Ckr.MECHANISM_INVALID)
        return *spec.sizes, spec.flags

    def _open_session(self, slot: int, flags: int) -> Sequence[Any]:
        token = self._slots.token(slot)
        if not flags & SessionFlag.SERIAL:
            raise Refused(Ckr.SESSION_PARALLEL_NOT_SUPPORTED)
        if flags & SessionFlag.RW:
            raise Refused(Ckr.TOKEN_WRITE_PROTECTED)
        if len(self._sessions) >= MAX_SESSIONS:
            raise Refused(Ckr.SESSION_COUNT)
        handle, self._next_session = self._next_session, self._next_session + 1
        self._sessions[handle] = Session(
            slot,
            token,
            SessionFlag.SERIAL,
            logged_in=self._is_logged_in,
            usable=self._slots.usable,
            random=self._random,
        )
        return (handle,)

    def _is_logged_in(self, token: Token) -> bool:
        return token.line in self._logged_in

    def _close_session(self, handle: int) -> Sequence[Any]:
        if handle not in self._sessions:
            raise Refused(Ckr.SESSION_HANDLE_INVALID)
        self._close([handle])
        return _NONE

    def _close_all_sessions(self, slot: int) -> Sequence[Any]:
        self._close([handle for handle, session in self._sessions.items() if session.slot == slot])
        return _NONE

    def _close(self, handles: Sequence[int]) -> None:
        """Close sessions; the end of a token's last one is a logout (PKCS#11 2.40 §5.6)."""
        for handle in handles:
            del self._sessions[handle]
        self._logged_in &= {session.token.line for session in self._sessions.values()}

    def _get_session_info(self, handle: int) -> Sequence[Any]:
        session = self._session(handle)
        return session.slot, session.state, session.flags, 0

    def _login(self, handle: int, user: int, pin: bytes | Size | None) -> Sequence[Any]:
        token = self._session(handle).token
        if user == UserType.SO:
            raise Refused(Ckr.SESSION_READ_ONLY_EXISTS)
        if user != UserType.USER:
            raise Refused(Ckr.USER_TYPE_INVALID)
        if self._is_logged_in(token):
            raise Refused(Ckr.USER_ALREADY_LOGGED_IN)
        if self._wrong_pins >= MAX_WRONG_PINS:
            raise Refused(Ckr.PIN_LOCKED)
        if not token.accepts(pin if isinstance(pin, bytes) else None):
            self._wrong_pins += 1
            raise Refused(Ckr.PIN_INCORRECT)
        self._logged_in.add(token.line)
        return _NONE

    def _logout(self, handle: int) -> Sequence[Any]:
        token = self._session(handle).token
        if not self._is_logged_in(token):
            raise Refused(Ckr.USER_NOT_LOGGED_IN)
        self._logged_in.remove(token.line)
        return _NONE

    def _get_object_size(self, handle: int, which: int) -> Sequence[Any]:
        attributes = self._object(handle, which).attributes
        return (sum(length_of(Attribute(kind, value)) for kind, value in attributes.items()),)

    def _get_attribute_value(self, handle: int, which: int, rooms: tuple[Room, ...]) -> Sequence[Any]:
        return self._object(handle, which).read(rooms)

    def _find_objects_init(self, handle: int, template: tuple[Attribute, ...]) -> Sequence[Any]:
        self._session(handle).find_init(template)
        return _NONE

    def _find_objects(self, handle: int, room: int | None) -> Sequence[Any]:
        return (self._session(handle).find(room or 0),)

    def _find_objects_final(self, handle: int) -> Sequence[Any]:
        self._session(handle).find_final()
        return _NONE

    def _encrypt_init(self, handle: int, mechanism: Mechanism, key: int) -> Sequence[Any]:
        self._session(handle).encrypt_init(mechanism, key)
        return _NONE

    def _encrypt(self, handle: int, data: object, room: int | None) -> Sequence[Any]:
        return (self._session(handle).encrypt(_data(data), room),)

    def _decrypt_init(self, handle: int, mechanism: Mechanism, key: int) -> Sequence[Any]:
        self._session(handle).decrypt_init(mechanism, key)
        return _NONE

    def _decrypt(self, handle: int, data: object, room: int | None) -> Sequence[Any]:
        return (self._session(handle).decrypt(_data(data), room),)

    def _digest_init(self, handle: int, mechanism: Mechanism) -> Sequence[Any]:
        self._session(handle).digest_init(mechanism)
        return _NONE

    def _digest(self, handle: int, data: object, room: int | None) -> Sequence[Any]:
        return (self._session(handle).digest(_data(data), room),)

    def _digest_update(self, handle: int, data: object) -> Sequence[Any]:
        self._session(handle).digest_update(_data(data))
        return _NONE

    def _digest_final(self, handle: int, room: int | None) -> Sequence[Any]:
        return (self._session(handle).digest(b"", room),)

    def _sign_init(self, handle: int, mechanism: Mechanism, key: int) -> Sequence[Any]:
        self._session(handle).sign_init(mechanism, key)
        return _NONE

    def _sign(self, handle: int, data: object, room: int | None) -> Sequence[Any]:
        return (self._session(handle).sign(_data(data), room),)

    def _sign_update(self, handle: int, data: object) -> Sequence[Any]:
        self._session(handle).sign_update(_data(data))
        return _NONE

    def _sign_final(self, handle: int, room: int | None) -> Sequence[Any]:
        return (self._session(handle).sign(b"", room),)

    def _verify_init(self, handle: int, mechanism: Mechanism, key: int) -> Sequence[Any]:
        self._session(handle).verify_init(mechanism, key)
        return _NONE

    def _verify(self, handle: int, data: object, signature: object) -> Sequence[Any]:
        self._session(handle).verify(_data(data), _data(signature))
        return _NONE

    def _verify_update(self, handle: int, data: object) -> Sequence[Any]:
        self._session(handle).verify_update(_data(data))
        return _NONE

    def _verify_final(self, handle: int, signature: object) -> Sequence[Any]:
        self._session(handle).verify(b"", _data(signature))
        return _NONE

    def _generate_random(self, handle: int, room: int | None) -> Sequence[Any]:
        self._session(handle)
        if room is None or room > MAX_RANDOM:
            raise Refused(Ckr.ARGUMENTS_BAD)
        return (self._random(room),)

    def _session(self, handle: int) -> Session:
        session = self._sessions.get(handle)
        if session is None:
            raise Refused(Ckr.SESSION_HANDLE_INVALID)
        if not self._slots.alive(session.token):
            raise Refused(Ckr.DEVICE_REMOVED)
        return session

    def _object(self, handle: int, which: int) -> TokenObject:
        session = self._session(handle)
        found = session.object(which)
        if found is None:
            raise Refused(Ckr.OBJECT_HANDLE_INVALID)
        return found


def serial(slot: int) -> str:
    """A token's serial number."""
    return f"EVT{slot:02X}"


def _padded(text: str, length: int) -> bytes:
    return text.encode()[:length].ljust(length)


def _listed(numbers: Sequence[int], room: int | None) -> tuple[int, ...] | Size:
    return Size(len(numbers)) if room is None or room < len(numbers) else tuple(numbers)


def _data(data: object) -> bytes:
    """Input data; a NULL pointer without a length is none."""
    if data is None:
        return b""
    if not isinstance(data, bytes):
        raise Refused(Ckr.ARGUMENTS_BAD)
    return data
