"""`run-enclave` to its JSON against bare QEMU to the same heartbeat byte: what all of ours adds to a start.

Both boot the same kernel, command line and ramdisks with the same accelerator, memory and devices, one vCPU each, in
alternation. The time of run-enclave is that of the whole command, from its start to the JSON: two interpreters and what
they import, the image read and measured, the certificates, QEMU probed, the jail, the reservation, the heartbeat.

Bare QEMU gets all that for nothing: its kernel and ramdisk lie unpacked, and it is started without a jail. It cannot
boot to the heartbeat without an NSM and a vsock, so both are served by this process, from the modules in
`alcove.devices`, imported beforehand. Its time runs from the start of the process to the heartbeat byte.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alcove.devices.nsm.backend import NsmBackend
from alcove.devices.nsm.module import NsmModule
from alcove.devices.vsock.backend import VsockBackend
from alcove.enclave.init_channel import InitChannel
from alcove.enclave.paths import Paths
from alcove.image.boot import BootFiles, prepare_boot
from alcove.machine.accelerator import tsc_khz
from alcove.machine.argv import Qemu, qemu_argv
from alcove.machine.qemu import find_qemu
from alcove.machine.spec import MachineSpec
from alcove.types import Cid
from benchmarks.boot import MEMORY_MIB, Commands, hello
from benchmarks.harness import Case, Report, at_most, main, measure, ratios
from benchmarks.process import Cost, FailedError

LIMIT = 1.15
_BOOT_SECONDS = 120.0


def _ours(commands: Commands, image: Path) -> Cost:
    begin = time.perf_counter()
    started = commands.start(image)
    wall = time.perf_counter() - begin
    commands.end(started)
    return Cost(wall)


def _bare(image: BootFiles, qemu: Qemu) -> Cost:
    with tempfile.TemporaryDirectory(prefix="alcove-bare-") as name:
        return Cost(asyncio.run(_bare_boot(image, qemu, Path(name))))


async def _bare_boot(image: BootFiles, qemu: Qemu, directory: Path) -> float:
    """Seconds from the start of QEMU to the guest's heartbeat."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    nsm, vsock, port = (_listen(directory / name) for name in ("nsm", "vsock", "port"))
    module = NsmModule("i-0123456789abcdef0-enc0123456789abcdef", {}, lambda *_: b"", os.urandom)
    devices = (
        NsmBackend(loop, nsm, module, lambda _reason: ended.set()),
        VsockBackend(
            loop,
            vsock,
            Cid(16),
            host_socket=directory / "host",
            port_path=lambda _port: directory / "port",
            on_closed=lambda _reason: ended.set(),
        ),
    )
    heartbeat = InitChannel(loop, port)
    spec = MachineSpec(
        image.kernel,
        image.initrd,
        image.cmdline,
        1,
        MEMORY_MIB,
        "tcg",
        directory / "nsm",
        directory / "vsock",
        console=False,
        tsc_khz=tsc_khz(),
    )
    begin = time.perf_counter()
    process = subprocess.Popen(  # noqa: ASYNC220 - the loop has nothing else to do yet
        qemu_argv(spec, qemu), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=qemu.environment
    )
    try:
        await asyncio.wait_for(heartbeat.heartbeat(), _BOOT_SECONDS)
        return time.perf_counter() - begin
    except TimeoutError:
        raise FailedError("bare QEMU did not come to the heartbeat") from None
    finally:
        heartbeat.close()
        process.kill()
        process.wait()
        for device in devices:
            device.close()
        for listener in (nsm, vsock, port):
            listener.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(str(path))
    listener.listen()
    return listener


def benchmark(arguments: argparse.Namespace) -> Report:
    """Both starts, in turn."""
    if shutil.which("bwrap") is None:
        raise FailedError("bubblewrap is not installed: run make setup")
    with tempfile.TemporaryDirectory(prefix="alcove-bench-") as name:
        directory = Path(name)
        commands = Commands(directory)
        image = hello(commands, directory, arguments.eif)
        files, qemu = prepare_boot(image, directory), find_qemu(Paths.from_environment().tools)
        cases = [Case("run-enclave", lambda: _ours(commands, image)), Case("bare QEMU", lambda: _bare(files, qemu))]
        ours, bare = measure(cases, arguments.rounds)
    each = ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios(ours, bare)))
    medians = statistics.median(ours.times) / statistics.median(bare.times)
    return Report(
        [ours, bare],
        [at_most("time against bare QEMU, best of each", ours.best / bare.best, LIMIT)],
        remarks=[f"Time against bare QEMU in each round: {each}; of the medians: {medians:.2f}."],
    )


def options(parser: argparse.ArgumentParser) -> None:
    """Of which image."""
    parser.add_argument("--eif", type=Path, metavar="FILE", help="the image; examples/hello is built when not given")


if __name__ == "__main__":
    sys.exit(main("run_enclave", __doc__ or "", benchmark, options))
