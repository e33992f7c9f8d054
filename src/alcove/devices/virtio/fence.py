"""The memory barrier that rings in shared memory need, from Python (devices.md §4).

The guest's processors read a ring while we write it. An index must not become visible before the entries that it
speaks of, nor may entries be read before their index. Python has no barrier of its own:

- x86-64 keeps the order of loads and the order of stores by itself; the interpreter executes one operation after the
  other, and a ring needs no order of a store before a load. Nothing has to be done.
- Other processors, arm64 among them, keep no such order. There the fence of C11 is called, which libatomic exports as a
  function; without libatomic no device is served, as a guest's memory would be damaged without a word.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache, partial
from typing import Final

from alcove.errors import MachineError

ORDERED: Final = frozenset({"x86_64", "i686"})  # Intel SDM volume 3A §9.2.2
_LIBRARY: Final = "libatomic.so.1"  # of GCC; Debian's package is libatomic1
_SEQ_CST: Final = 5  # memory_order_seq_cst in GCC's and Clang's stdatomic.h


def host_fence() -> Callable[[], object] | None:
    """The fence for this machine's processor, or None where none is needed.

    Raises:
        MachineError: One is needed and there is none.
    """
    return None if platform.machine() in ORDERED else full_fence()


@cache
def full_fence() -> Callable[[], object]:
    """C11's `atomic_thread_fence(memory_order_seq_cst)`; errors as in :func:`host_fence`."""
    try:
        fence = ctypes.PyDLL(_LIBRARY).atomic_thread_fence
    except (OSError, AttributeError):
        raise MachineError(
            f"this processor ({platform.machine()}) needs memory barriers, and {_LIBRARY} is not installed",
            hint="apt-get install libatomic1",
        ) from None
    fence.argtypes, fence.restype = [ctypes.c_int], None
    return partial(fence, _SEQ_CST)
