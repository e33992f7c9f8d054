"""The NSM alone: attestation documents over virtqueues against the signatures in them.

The device runs in a process of its own, with the event loop, the signer and the look at the parent's files that the
supervisor has. This process is QEMU and the guest's driver (`FakeGuest`): one request in flight, as in Linux, over real
rings in shared memory and real event descriptors. There is no virtual machine.

The limit is the rate at which `cryptography` makes P-384 signatures over as many bytes, with nothing around them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import tempfile
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
from benchmarks.harness import Report, Result, at_least, in_process, main, measure

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
def _device(directory: Path) -> Iterator[FakeNsmDriver]:
    """The guest's driver, with the device in a process of its own behind it."""
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
            yield FakeNsmDriver(guest)
    finally:
        os.waitpid(child, 0)


def benchmark(arguments: argparse.Namespace) -> Report:
    """Documents, signatures and the requests without a signature, in turn."""
    key, algorithm, count = ec.generate_private_key(ec.SECP384R1()), ec.ECDSA(SHA384()), arguments.count
    with tempfile.TemporaryDirectory(prefix="alcove-bench-") as name, _device(Path(name)) as driver:
        signature = in_process("P-384 signature", _repeat(count, lambda: key.sign(bytes(_SIGNED), algorithm)))
        plain = in_process("Attestation, nonce of 32 bytes", _requests(driver, nsm.Attestation(nonce=bytes(32)), count))
        others = [in_process(name, _requests(driver, request, count)) for name, request in _REQUESTS.items()]
        results = measure([signature, plain, *others], arguments.rounds * _ROUNDS)
    rate = results[0].best / results[1].best
    promise = at_least("documents a second against signatures a second", rate, 0.7)
    return Report(results, [promise], {f"{count} requests a round": [_row(result, count) for result in results]})


def _repeat(count: int, function: Callable[[], object]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(count):
            function()

    return repeated


def _requests(driver: FakeNsmDriver, request: nsm.Request, count: int) -> Callable[[], None]:
    data = nsm.encode_request(request)
    answer = nsm.decode_response(driver.request(data))
    if isinstance(answer, nsm.Failed):
        raise SystemExit(f"the device answers {answer.error}")  # a benchmark of errors would be fast
    return _repeat(count, lambda: driver.request(data))


def _row(result: Result, count: int) -> dict[str, object]:
    return {"case": result.name, "a second": round(count / result.best), "µs each": round(result.best / count * 1e6)}


def options(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument("--count", type=int, default=200, metavar="N", help="requests a round; 200 when not given")


if __name__ == "__main__":
    sys.exit(main("nsm", __doc__ or "", benchmark, options))
