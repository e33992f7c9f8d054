"""Give the kernel the NSM's randomness before a key is made (sdk.md §7).

A kernel with the nsm driver does this by itself (nsm.md §2.2), at its own pace and from 6.8 on. `seed` does not wait
for that, and never falls back silently: afterwards the kernel's generator is ready, or there is an error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final, Protocol

from alcove.sdk.errors import EntropyError

RNDADDENTROPY: Final = 0x40085203  # linux/random.h: struct rand_pool_info {int bits; int bytes; data}
SEED_BYTES: Final = 512  # two answers of the module; the kernel's pool holds 32 bytes
_DEVICE: Final = "/dev/random"
_HEAD: Final = struct.Struct("=ii")


class RandomSource(Protocol):
    """What gives random bytes; `Nsm` does."""

    def get_random(self) -> bytes:
        """Some random bytes; at least one."""


def seed(source: RandomSource, *, size: int = SEED_BYTES) -> None:
    """Mix at least `size` bytes of the module's into the kernel's pool, and credit them in the same call.

    Needs CAP_SYS_ADMIN, which an enclave's first process has; without it nothing is added and it is only checked that
    the kernel's generator is ready.

    Raises:
        EntropyError: The generator is not ready.
        NsmError: The module refused or cannot be reached.
    """
    _add(source, size)
    try:
        os.getrandom(1, os.GRND_NONBLOCK)
    except BlockingIOError:
        raise EntropyError("the kernel's random generator has not been seeded") from None


def _add(source: RandomSource, size: int) -> None:
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        while size > 0:
            block = source.get_random()
            if not block:
                raise EntropyError("the NSM gave no random bytes")
            fcntl.ioctl(device, RNDADDENTROPY, _HEAD.pack(len(block) * 8, len(block)) + block)
            size -= len(block)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise EntropyError(f"entropy cannot be added: {error.strerror}") from None
    finally:
        os.close(device)
