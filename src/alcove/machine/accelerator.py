"""Choose between KVM and TCG: KVM only when it is proven to work.

``/dev/kvm`` can exist and be unusable, on a host without working nested virtualisation (devices.md §2.1). The proof:

1. ``/dev/kvm`` opens for reading and writing.
2. The processor has ``vmx`` or ``svm``.
3. A kernel, started under KVM, says something before a time limit. The verdict is kept until the host restarts.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Final, Literal

from alcove.errors import MachineError
from alcove.machine.argv import Qemu, probe_argv
from alcove.machine.spec import Accelerator

PROBE_SECONDS: Final = 10.0  # a working KVM needs under one
DEFAULT_TSC_KHZ: Final = 1_000_000  # QEMU's TCG counts nanoseconds where the host has no cycle counter it knows
_HELLO: Final = b"Linux version "
_KVM: Final = Path("/dev/kvm")
_CPUINFO: Final = Path("/proc/cpuinfo")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def choose_accelerator(
    qemu: Qemu,
    wanted: Literal["auto", "kvm", "tcg"] = "auto",
    *,
    kernel: Path | None = None,
    cache: Path | None = None,
) -> tuple[Accelerator, str]:
    """The accelerator, and the reason in words.

    Args:
        qemu: The QEMU that will run.
        wanted: "auto" proves KVM or falls back to TCG; the others are taken at their word, KVM if it opens.
        kernel: A kernel for the proof; without one KVM stays unproven.
        cache: File in the state directory that keeps the verdict, or None.

    Raises:
        MachineError: KVM was asked for and ``/dev/kvm`` does not open.
    """
    if wanted == "tcg":
        return "tcg", "asked for"
    if not os.access(_KVM, os.R_OK | os.W_OK):
        why = f"{_KVM} {'may not be opened by this user' if _KVM.exists() else 'does not exist'}"
        if wanted == "kvm":
            raise MachineError(f"KVM was asked for, and {why}", hint="use accelerator auto, or load the kvm module")
        return "tcg", why
    if wanted == "kvm":
        return "kvm", "asked for"
    if not has_virtualisation(_CPUINFO.read_text()):
        return "tcg", f"{_KVM} exists, but the processor shows neither vmx nor svm, so it cannot work"
    if kernel is None:
        return "tcg", "KVM is not proven: there is no kernel to prove it with"
    proven = _remembered_proof(qemu, kernel, cache)
    return ("kvm", "proven by a probe boot") if proven else ("tcg", "a probe boot under KVM failed")


def has_virtualisation(cpuinfo: str) -> bool:
    """Whether ``/proc/cpuinfo`` names Intel's or AMD's virtualisation among the flags."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return bool(flags and {"vmx", "svm"} & set(flags[1].split()))


def tsc_khz(cpuinfo: str | None = None) -> int:
    """Rate of the host's time stamp counter in kHz, which is the guest's under TCG.

    QEMU's TCG reads the host's counter, so the guest's kernel may be told the host's rate. Linux derives bogomips
    from that very rate (arch/x86/kernel/tsc.c, ``lpj_fine``): it is twice the MHz. "cpu MHz" moves with the load.
    """
    match = re.search(
        r"^bogomips\s*:\s*(\d+\.\d+)$", _CPUINFO.read_text() if cpuinfo is None else cpuinfo, re.MULTILINE
    )
    if match is None or platform.machine() != "x86_64":
        return DEFAULT_TSC_KHZ
    return round(float(match[1]) * 500)


def _remembered_proof(qemu: Qemu, kernel: Path, cache: Path | None) -> bool:
    key = f"{_BOOT_ID.read_text().strip()} {'.'.join(map(str, qemu.version))} {kernel.name}"
    if cache is not None:
        try:
            kept = json.loads(cache.read_text())
            if kept["key"] == key:
                return bool(kept["kvm"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or not ours: prove again
    proven = _probe(qemu, kernel)
    if cache is not None:
        fresh = cache.with_name(f".{cache.name}.{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "kvm": proven}))
        fresh.replace(cache)
    return proven


def _probe(qemu: Qemu, kernel: Path) -> bool:
    command = probe_argv(qemu, kernel, "kvm")
    environment = {"PATH": os.defpath, **qemu.environment}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PROBE_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired as error:  # a hello is proof enough, even if the guest did not end
        return _HELLO in (error.stdout or b"")
    except OSError:
        return False
    return _HELLO in done.stdout
