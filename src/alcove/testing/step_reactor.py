"""An event loop that moves when it is told to, for tests that must come out alike each time."""

from __future__ import annotations

import selectors
from collections import deque
from collections.abc import Callable
from typing import Final

Callback = tuple[Callable[..., object], tuple[object, ...]]
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
MAX_TURNS: Final = 10_000


class StepTimer:
    """A call that :meth:`StepReactor.fire` makes, unless it is cancelled."""

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Forget the call."""
        self.callback = None


class StepReactor:
    """The methods of an asyncio loop that devices use; what a callback raises comes out of :meth:`run`."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()
        self._soon: deque[Callback] = deque()
        self._timers: list[StepTimer] = []

    def add_reader(self, fd: int, callback: Callable[..., object], /, *args: object) -> None:
        """Watch `fd` for reading."""
        self._watch(fd, _READ, (callback, args))

    def remove_reader(self, fd: int, /) -> bool:
        """Stop watching `fd` for reading."""
        return self._watch(fd, _READ, None)

    def add_writer(self, fd: int, callback: Callable[..., object], /, *args: object) -> None:
        """Watch `fd` for writing."""
        self._watch(fd, _WRITE, (callback, args))

    def remove_writer(self, fd: int, /) -> bool:
        """Stop watching `fd` for writing."""
        return self._watch(fd, _WRITE, None)

    def call_soon(self, callback: Callable[..., object], /, *args: object) -> None:
        """Call in the next turn."""
        self._soon.append((callback, args))

    def call_later(self, _delay: float, callback: Callable[..., object], /, *args: object) -> StepTimer:
        """Call when timers are fired, however long that takes."""
        timer = StepTimer((callback, args))
        self._timers.append(timer)
        return timer

    def run(self) -> None:
        """Turn until nothing is left to do.

        Raises:
            RuntimeError: There is always something left: a device keeps the loop busy.
        """
        for _ in range(MAX_TURNS):
            soon, self._soon = self._soon, deque()
            ready = [callback for key, mask in self._selector.select(0) for callback in _ready(key.data, mask)]
            if not soon and not ready:
                return
            for function, args in (*soon, *ready):
                function(*args)
        raise RuntimeError("the loop never comes to rest")

    def fire(self) -> None:
        """Let the time of every timer come, and run."""
        timers, self._timers = self._timers, []
        for timer in timers:
            if timer.callback is not None:
                function, args = timer.callback
                function(*args)
        self.run()

    def watched(self) -> int:
        """How many descriptors are watched."""
        return len(self._selector.get_map())

    def close(self) -> None:
        """Let go of everything."""
        self._selector.close()

    def _watch(self, fd: int, event: int, callback: Callback | None) -> bool:
        found = self._selector.get_map().get(fd)
        callbacks: dict[int, Callback] = dict(found.data) if found else {}
        before = callbacks.pop(event, None)
        if callback is not None:
            callbacks[event] = callback
        mask = sum(callbacks)
        if found and mask:
            self._selector.modify(fd, mask, callbacks)
        elif found:
            self._selector.unregister(fd)
        elif mask:
            self._selector.register(fd, mask, callbacks)
        return before is not None


def _ready(callbacks: dict[int, Callback], mask: int) -> list[Callback]:
    return [callback for event, callback in callbacks.items() if event & mask]
