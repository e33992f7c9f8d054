"""Tokens in slots: what keys there are, who may use them, and for how long (acm.md §3, §5.3).

Core: time comes from a function that is handed in.

An update puts another token into the slot. Sessions that are open go on: they use the objects that they know, so that a
web server's old workers finish their handshakes with the key whose certificate they sent, and what they search for they
find in the new token, so that a master that keeps its session can take up the new key. A removal ends all.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from alcove.apps.acm.cryptoki import Cka, Cko, Ckr, Refused
from alcove.apps.acm.mechanisms import SPECS, Profile, Spec
from alcove.apps.acm.objects import TokenObject, mechanism_object
from alcove.apps.acm.values import Attribute
from alcove.errors import UsageError

MAX_TOKENS: Final = 4096
TTL_SECONDS: Final = 48 * 3600.0  # acm.md §3: after that a token that was not refreshed is gone
MIN_PIN: Final = 4
MAX_PIN: Final = 64
MAX_LABEL: Final = 32


class Rate:
    """At most so many signatures a second, with twice as many at once.

    Args:
        per_second: The limit; None is none.
        clock: Seconds from any beginning.
    """

    def __init__(self, per_second: float | None, clock: Callable[[], float]) -> None:
        self._limit, self._clock = per_second, clock
        self._left, self._at = 2 * (per_second or 0.0), clock()

    def take(self) -> bool:
        """Whether one more is within the limit."""
        if self._limit is None:
            return True
        now = self._clock()
        self._left = min(2 * self._limit, self._left + (now - self._at) * self._limit)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(slots=True, eq=False)
class Token:
    """Keys and certificates behind one PIN.

    Attributes:
        label: Up to 32 bytes of UTF-8.
        pin: Opens the private objects.
        objects: Keys, certificates, mechanisms.
        profile: What the keys are for.
        expires: When it is gone unless it is refreshed, by the store's clock.
        rate: How often its keys may be used.
        uses: How often they were.
        removed: It is gone for sessions that are open, too.
        handles: The objects by handle, from 1 on. What takes a token's place has the same handle for the same object,
            and none for another: a process that was forked before the change uses the handles of before on a session of
            after.
        line: The same for all that took each other's place; who is logged in to one is logged in to all.
        successor: What took its place.
        specs: The mechanisms that it offers.
    """

    label: str
    pin: bytes = field(repr=False)
    objects: tuple[TokenObject, ...]
    profile: Profile
    expires: float
    rate: Rate
    uses: int = 0
    removed: bool = False
    line: object = field(default_factory=object, repr=False)
    successor: Token | None = field(default=None, repr=False)
    specs: dict[int, Spec] = field(init=False, repr=False)
    handles: dict[int, TokenObject] = field(init=False, repr=False)
    _next: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.specs = SPECS[self.profile]
        self.handles = dict(enumerate(self.objects, 1))
        self._next = len(self.objects) + 1

    def take_place_of(self, old: Token) -> None:
        """Let sessions on the one before go over to this one."""
        before = {_name(each): handle for handle, each in old.handles.items()}
        self.handles, self._next, self.line = {}, old._next, old.line
        for each in self.objects:
            handle = before.get(_name(each))
            if handle is None or old.handles[handle].attributes != each.attributes or handle in self.handles:
                handle, self._next = self._next, self._next + 1
            self.handles[handle] = each
        old.successor = self

    def accepts(self, pin: bytes | None) -> bool:
        """Whether that is the PIN; takes the same time whatever is wrong with it."""
        return hmac.compare_digest(self.pin, pin or b"")

    def newest(self) -> Token:
        """What is in its place now; itself, unless another took it."""
        token = self
        while token.successor is not None:
            token = token.successor
        return token

    def owner(self, handle: int) -> Token | None:
        """The token that an object belongs to: the newest that has it, of this one and those that took its place."""
        found: Token | None = None
        token: Token | None = self
        while token is not None:
            found, token = token if handle in token.handles else found, token.successor
        return found

    def object(self, handle: int, *, logged_in: bool) -> TokenObject | None:
        """Its object with a handle, if it can be seen."""
        found = self.handles.get(handle)
        return None if found is None or (found.private and not logged_in) else found

    def find(self, template: Sequence[Attribute], *, logged_in: bool) -> Iterator[int]:
        """The handles of the objects that a search finds; those of mechanisms only if it names their class."""
        mechanisms = Attribute(Cka.CLASS, int(Cko.MECHANISM)) in template
        for handle, each in self.handles.items():
            seen = logged_in or not each.private
            if seen and (each.attributes[Cka.CLASS] == Cko.MECHANISM) is mechanisms and each.matches(template):
                yield handle


def _name(each: TokenObject) -> tuple[object, ...]:
    return tuple([each.attributes.get(kind) for kind in (Cka.CLASS, Cka.ID, Cka.LABEL, Cka.MECHANISM_TYPE)])


def mechanism_objects(profile: Profile) -> tuple[TokenObject, ...]:
    """An object for each mechanism of a profile."""
    return tuple(mechanism_object(spec) for spec in SPECS[profile].values())


class Slots:
    """The slots of the device, each with one token.

    Args:
        clock: Seconds from any beginning; monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._tokens: dict[int, Token] = {}

    def ids(self) -> list[int]:
        """The slots that have a token, in order."""
        self._expire()
        return sorted(self._tokens)

    def token(self, slot: int) -> Token:
        """The token in a slot.

        Raises:
            Refused: There is none.
        """
        self._expire()
        try:
            return self._tokens[slot]
        except KeyError:
            raise Refused(Ckr.SLOT_ID_INVALID) from None

    def labelled(self, label: str) -> tuple[int, Token] | None:
        """The slot and the token with a label."""
        self._expire()
        return next(((slot, token) for slot, token in self._tokens.items() if token.label == label), None)

    def add(self, token: Token) -> int:
        """Put a token into the first free slot, and return its number.

        Raises:
            UsageError: There is one with that label, or no slot is free.
        """
        if self.labelled(token.label) is not None:
            raise UsageError(f"there is a token {token.label}")
        if len(self._tokens) >= MAX_TOKENS:
            raise UsageError(f"there are {MAX_TOKENS} tokens, and no more slots")
        slot = next(number for number in range(MAX_TOKENS) if number not in self._tokens)
        self._tokens[slot] = token
        return slot

    def replace(self, slot: int, token: Token) -> None:
        """Put another token in the place of the one in a slot; sessions on the old one go on.

        With another PIN they do not get to see what is new.
        """
        old = self._tokens[slot]
        if token.accepts(old.pin):
            token.take_place_of(old)
        self._tokens[slot] = token

    def remove(self, slot: int) -> None:
        """Take the token out, for open sessions too."""
        self._tokens.pop(slot).removed = True

    def free(self) -> int:
        """How many more tokens there is room for."""
        return MAX_TOKENS - len(self._tokens)

    def alive(self, token: Token) -> bool:
        """Whether sessions on a token may go on."""
        newest = token.newest()
        return not newest.removed and self.clock() < newest.expires

    def usable(self, token: Token) -> bool:
        """Whether objects of a token may be used: of one that was replaced they may for the rest of its time."""
        return self.alive(token) and self.clock() < token.expires

    def _expire(self) -> None:
        now = self.clock()
        for slot in [slot for slot, token in self._tokens.items() if token.expires <= now]:
            self.remove(slot)
