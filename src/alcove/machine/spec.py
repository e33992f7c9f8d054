"""What a machine consists of.

Core: values only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from alcove.errors import UsageError

Accelerator = Literal["kvm", "tcg"]

MIN_MEMORY_MIB: Final = 64  # cli.md: nitro-cli's own floor; a real image needs more
MAX_CPUS: Final = 288  # -M microvm's limit (hw/i386/microvm.c)
MAX_CMDLINE: Final = 2047  # COMMAND_LINE_SIZE on x86 without its final NUL; Linux cuts the rest off in silence
MAX_SOCKET_PATH: Final = 107  # unix(7): sun_path without its final NUL


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """What the guest's memory is made of.

    Args:
        page_mib: Size of the huge pages it comes from, in MiB; None for ordinary pages.
        locked: Whether QEMU locks its memory, so that none of it is ever swapped out.
    """

    page_mib: int | None = None
    locked: bool = False


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One enclave's machine.

    Args:
        kernel: bzImage file.
        initrd: The image's ramdisks, concatenated in section order (devices.md §2).
        cmdline: The image's kernel command line, as measured.
        cpu_count: Virtual CPUs, at least 1.
        memory_mib: Guest memory in MiB.
        accelerator: "kvm" or "tcg".
        nsm_socket: Listening vhost-user socket of the NSM.
        vsock_socket: Listening vhost-user socket of vsock.
        console: Whether the guest's serial console is QEMU's standard output; discarded otherwise.
        memory: What the memory is made of.
        tsc_khz: Rate of the guest's time stamp counter, told to the kernel under TCG only (devices.md §2.1).

    Raises:
        UsageError: A number is out of range or a path is too long.
    """

    kernel: Path
    initrd: Path
    cmdline: str
    cpu_count: int
    memory_mib: int
    accelerator: Accelerator
    nsm_socket: Path
    vsock_socket: Path
    console: bool
    memory: GuestMemory = GuestMemory()
    tsc_khz: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.cpu_count <= MAX_CPUS:
            raise UsageError(f"a machine has 1 to {MAX_CPUS} CPUs, not {self.cpu_count}")
        if self.memory_mib < MIN_MEMORY_MIB:
            raise UsageError(f"a machine needs at least {MIN_MEMORY_MIB} MiB of memory, not {self.memory_mib}")
        if self.memory.page_mib and self.memory_mib % self.memory.page_mib:
            raise UsageError(f"{self.memory_mib} MiB are not a whole number of pages of {self.memory.page_mib} MiB")
        if "\0" in self.cmdline or len(self.guest_cmdline.encode()) > MAX_CMDLINE:
            raise UsageError(f"the kernel command line has a NUL byte or more than {MAX_CMDLINE} bytes")
        for path in (self.nsm_socket, self.vsock_socket):
            if len(bytes(path)) > MAX_SOCKET_PATH:
                raise UsageError(
                    f"{path}: a socket's path has at most {MAX_SOCKET_PATH} bytes",
                    hint="use a shorter runtime directory",
                )

    @property
    def guest_cmdline(self) -> str:
        """What the guest's kernel is given: the measured command line, and under TCG the counter's rate and its worth.

        Without the rate about half of the boots under TCG hang for ever (devices.md §2.1). The counter is the host's,
        but a guest compares it with its own timer interrupts, which come late on a busy host; then it calls the counter
        unstable and counts those interrupts instead: its clock loses seconds, and has no finer steps than 4 ms.
        Neither word is part of the image, and so of no measurement.
        """
        if self.accelerator == "tcg" and self.tsc_khz:
            return f"{self.cmdline} tsc_early_khz={self.tsc_khz} tsc=reliable"
        return self.cmdline
