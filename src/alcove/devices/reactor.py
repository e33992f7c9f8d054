"""The event loop as devices see it.

Core: an interface only.

An asyncio loop is one. Devices never import asyncio, so a test may bring its own loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Forget the call."""


class Reactor(Protocol):
    """The methods of an asyncio loop that devices use; the meaning is asyncio's own."""

    def add_reader(self, fd: int, callback: Callable[..., object], /, *args: object) -> object:
        """Call `callback(*args)` whenever `fd` can be read."""

    def remove_reader(self, fd: int, /) -> bool:
        """Stop watching `fd` for reading."""

    def add_writer(self, fd: int, callback: Callable[..., object], /, *args: object) -> object:
        """Call `callback(*args)` whenever `fd` can be written."""

    def remove_writer(self, fd: int, /) -> bool:
        """Stop watching `fd` for writing."""

    def call_soon(self, callback: Callable[..., object], /, *args: object) -> object:
        """Call `callback(*args)` in the loop's next turn."""

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: object) -> Timer:
        """Call `callback(*args)` after `delay` seconds."""
