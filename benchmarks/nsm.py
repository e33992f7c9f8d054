"""The NSM alone: attestation documents over virtqueues against the signatures in them.

The device runs in a process of its own, with the event loop, the signer and the look at the parent's files that the
supervisor has. This process is QEMU and the guest's driver (`FakeGuest`): one request in flight, as in Linux, over real
rings in shared memory and real event descriptors. There is no virtual machine.

The limit is the rate at which `cryptography` makes P-384 signatures over as many bytes, with nothing around them. What
counts is the processor time of the device's process, one core's rate against one core's; a part of the wall time, which
the table shows too, is the guest's. All processes share one processor: on two, each falls asleep between two requests,
and what is measured is how a machine wakes up. The last case is two processes that wake each other and do nothing, and
`--processors all` shows the difference.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from alcove.attestation.attester import Attester
from alcove.devices.nsm import messages as nsm
from alcove.devices.nsm.backend import NsmBackend
from alcove.devices.nsm.module import NsmModule
from alcove.enclave.identity import ParentSource, initial_pcrs, new_enclave_id
from alcove.enclave.paths import Paths
from alcove.testing.fake_drivers import FakeNsmDriver
from alcove.testing.fake_guest import FakeGuest
from alcove.types import Measurements
from benchmarks.harness import Case, Report, Result, at_least, in_process, main, measure
from benchmarks.process import Cost
from benchmarks.vsock_peers import cpu_seconds

_ROUNDS = 4  # for one that the harness counts: short ones, so that some meet a quiet moment of the machine
_SIGNED = 4500  # bytes of a document's Sig_structure
_REQUESTS: dict[str, nsm.Request] = {
    "Attestation, 1 KiB each of user_data, nonce and key": nsm.Attestation(bytes(1024), bytes(1024), bytes(1024)),
    "DescribePCR": nsm.DescribePCR(0),
    "GetRandom": nsm.GetRandom(),
}


def _serve(paths: Paths, listener: socket.socket) -> None:
    """The device, until its front-end hangs up."""
    source = ParentSource(paths, look_seconds=0.2)  # as the supervisor has it
    parent = source.load()
    attester = Attester(parent, new_enclave_id(parent.instance_id))

    def attest(locked: object, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None) -> bytes:
        now = datetime.now(UTC)
        attester.renew(source.load, now=now, changed=source.changed)
        return attester.document(
            locked,  # type: ignore[arg-type]
            user_data=user_data,
            nonce=nonce,
            public_key=public_key,
            now=now,
        )

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        pcrs = initial_pcrs(Measurements(*[b"\1" * 48] * 3), attester.instance_id, debug_mode=False)
        module = NsmModule(attester.enclave_id, pcrs, attest, os.urandom)
        backend = NsmBackend(loop, listener, module, lambda _reason: over.set_result(None))
        await over
        backend.close()

    asyncio.run(serve())


@contextmanager
def _device(directory: Path) -> Iterator[tuple[int, FakeNsmDriver]]:
    """The device in a process of its own, by its number, and the guest's driver."""
    paths = Paths(directory / "state", directory / "run", directory / "etc")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "nsm.dev"))
        listener.listen()
        child = os.fork()
        if child == 0:
            try:
                _serve(paths, listener)
            finally:
                os._exit(0)
    try:
        with FakeGuest(str(directory / "nsm.dev")) as guest:
            guest.realize()
            guest.start()
            yield child, FakeNsmDriver(guest)
    finally:
        os.waitpid(child, 0)


@contextmanager
def _echo() -> Iterator[Callable[[], object]]:
    """A round trip to a process that does nothing but wake up and answer."""
    there, back = os.eventfd(0), os.eventfd(0)
    child = os.fork()
    if child == 0:
        try:
            with select.epoll() as poller:
                poller.register(there, select.EPOLLIN)
                while poller.poll() and os.eventfd_read(there) == 1:
                    os.eventfd_write(back, 1)
        finally:
            os._exit(0)

    def trip() -> None:
        os.eventfd_write(there, 1)
        select.select([back], [], [])
        os.eventfd_read(back)

    try:
        yield trip
    finally:
        os.eventfd_write(there, 2)
        os.waitpid(child, 0)
        os.close(there)
        os.close(back)


def benchmark(arguments: argparse.Namespace) -> Report:
    """Documents, signatures and the requests without a signature, in turn."""
    if arguments.processors == "one":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    key, algorithm, count = ec.generate_private_key(ec.SECP384R1()), ec.ECDSA(SHA384()), arguments.count
    with (
        _echo() as trip,
        tempfile.TemporaryDirectory(prefix="alcove-bench-") as name,
        _device(Path(name)) as (device, driver),
    ):
        signature = in_process("P-384 signature", _repeat(count, lambda: key.sign(bytes(_SIGNED), algorithm)))
        plain = _requests("Attestation, nonce of 32 bytes", device, driver, nsm.Attestation(nonce=bytes(32)), count)
        others = [_requests(name, device, driver, request, count) for name, request in _REQUESTS.items()]
        waking = in_process("two processes that wake each other", _repeat(count, trip))
        results = measure([signature, plain, *others, waking], arguments.rounds * _ROUNDS)
    rate = _processor(results[0]) / _processor(results[1])
    promise = at_least("documents a second of the device's processor, against signatures", rate, 0.7)
    return Report(results, [promise], {f"{count} requests a round": [_row(result, count) for result in results]})


def _repeat(count: int, function: Callable[[], object]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(count):
            function()

    return repeated


def _requests(name: str, device: int, driver: FakeNsmDriver, request: nsm.Request, count: int) -> Case:
    """So many requests, one after the other; their processor time is the device's alone."""
    data = nsm.encode_request(request)
    answer = nsm.decode_response(driver.request(data))
    if isinstance(answer, nsm.Failed):
        raise SystemExit(f"the device answers {answer.error}")  # a benchmark of errors would be fast

    def once() -> Cost:
        wall, cpu = time.perf_counter(), cpu_seconds(device)
        for _ in range(count):
            driver.request(data)
        return Cost(time.perf_counter() - wall, cpu_seconds(device) - cpu)

    return Case(name, once)


def _processor(result: Result) -> float:
    """The least processor time of a round, in seconds."""
    return min(cost.cpu for cost in result.costs)


def _row(result: Result, count: int) -> dict[str, object]:
    return {
        "case": result.name,
        "a second": round(count / result.best),
        "µs each": round(result.best / count * 1e6),
        "µs of processor": round(_processor(result) / count * 1e6),
    }


def options(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument("--count", type=int, default=200, metavar="N", help="requests a round; 200 when not given")
    parser.add_argument("--processors", choices=("one", "all"), default="one", help="for device and guest together")


if __name__ == "__main__":
    sys.exit(main("nsm", __doc__ or "", benchmark, options))
