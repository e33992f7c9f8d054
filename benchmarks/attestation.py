"""Verification of attestation documents against the P-384 verifications in it, and against the code that people copy.

Cold, nothing is known but the root: five signatures. Warm, the chain was proven before: one. Both are held against the
same signatures verified by `cryptography` alone, with keys that are loaded already, in the same run.

The peer (attestation_peer.py) needs cbor2 and pyOpenSSL. It is left out where they are missing; --peer names an
interpreter that has others:

    python -m venv /tmp/peer && /tmp/peer/bin/pip install cbor2 pyOpenSSL
    python -m benchmarks.attestation --peer /tmp/peer/bin/python

Hostile inputs of the largest size show that time and memory are bounded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from alcove.attestation import AttestationError, ChainCache, NoDebugMode, Root, VerifiedAttestation, verify
from alcove.attestation.attester import Attester
from alcove.attestation.authority import Authority
from alcove.attestation.document import MAX_DOCUMENT
from alcove.codec import cbor, cose
from benchmarks.harness import Case, Report, Result, at_most, in_process, main, measure, note
from benchmarks.process import Cost, FailedError, run

_ENCLAVE = "i-0123456789abcdef0-enc0123456789abcdef"
_ROUNDS = 20  # for one that the harness counts: short ones, so that some meet a quiet moment of the machine
_PEER = Path(__file__).with_name("attestation_peer.py")
_ES384 = ECDSA(SHA384())


@dataclass(frozen=True, slots=True)
class Subject:
    """A document to verify."""

    data: bytes
    root: Root
    at: datetime | None

    def verify(self, cache: ChainCache | None = None) -> VerifiedAttestation:
        """As the library does."""
        return verify(self.data, roots=[self.root], policy=NoDebugMode(), at=self.at, cache=cache)

    def signatures(self) -> list[Callable[[], None]]:
        """Its five verifications, and nothing else."""
        chain, sign1 = self.verify().certificates, cose.decode_sign1(self.data)
        r, s = (int.from_bytes(half) for half in (sign1.signature[:48], sign1.signature[48:]))
        signed = [(child.signature, child.signed) for child in chain[1:]]
        signed.append((encode_dss_signature(r, s), cose.sign1_structure(sign1.protected, sign1.payload)))
        keys = [certificate.public_key for certificate in chain]

        def check(index: int) -> None:
            signature, content = signed[index]
            keys[index].verify(signature, content, _ES384)

        return [lambda index=index: check(index) for index in range(len(keys))]  # type: ignore[misc]


def _own(directory: Path) -> Subject:
    now = datetime.now(UTC)
    authority = Authority.create(directory / "ca", now)
    attester = Attester(authority.parent_identity(_ENCLAVE.partition("-enc")[0], "eu-central-1", now), _ENCLAVE)
    pcrs = {index: bytes(48) for index in range(16)} | {index: bytes((index + 1,)) * 48 for index in (0, 1, 2, 4)}
    data = attester.document(pcrs, user_data=None, nonce=bytes(32), public_key=bytes(294), now=now)
    return Subject(data, authority.root, now)


def benchmark(arguments: argparse.Namespace) -> Report:
    """Verify a document in all the ways, in turn."""
    with tempfile.TemporaryDirectory(prefix="alcove-bench-") as directory:
        subject = _own(Path(directory))
        if arguments.document:
            subject = Subject(arguments.document.read_bytes(), Root.AWS, None)
        five, cache, count = subject.signatures(), ChainCache(), arguments.count
        cases = [
            in_process("five P-384 verifications", _repeat(count, lambda: [check() for check in five])),
            in_process("verify, cold", _repeat(count, subject.verify)),
            in_process("one P-384 verification", _repeat(count, five[-1])),
            in_process("verify, warm", _repeat(count, lambda: subject.verify(cache))),
        ]
        subject.verify(cache)
        peer, remark = _peer(subject, Path(directory), arguments.peer, count)
        results = measure([*cases, *peer], arguments.rounds * _ROUNDS)
    sums, cold, one, warm = results[:4]
    promises = (
        at_most("cold against its five verifications", cold.best / sums.best, 1.25),
        at_most("warm against one verification", warm.best / one.best, 1.4),
    )
    tables = {
        f"on one core, {count} documents a round": [_rate(result, count) for result in results],
        f"hostile inputs of {MAX_DOCUMENT} bytes": _hostile(subject),
    }
    return Report(results, promises, tables, [remark])


def _repeat(count: int, function: Callable[[], object]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(count):
            function()

    return repeated


def _rate(result: Result, count: int) -> dict[str, object]:
    return {
        "case": result.name,
        "a second": round(count / result.best),
        "µs each": round(result.best / count * 1e6),
    }


def _peer(subject: Subject, directory: Path, python: str, count: int) -> tuple[list[Case], str]:
    """The peer as a case, or why there is none."""
    verified, document, root = subject.verify(), directory / "document.cbor", directory / "root.pem"
    document.write_bytes(subject.data)
    root.write_bytes(_pem(verified.certificates[0].der))
    at = str(int(verified.document.timestamp.timestamp()))
    argv = [python, str(_PEER), str(document), str(root), at]

    def once() -> Cost:
        seconds = json.loads(run([*argv, str(count)]).output)["seconds"]
        return Cost(seconds, seconds)

    try:
        versions = json.loads(run([*argv, "1"]).output)
    except FailedError as error:
        note(str(error))
        return [], "The peer was left out: --peer names an interpreter that has cbor2 and pyOpenSSL."
    del versions["seconds"]
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [Case("cbor2 and pyOpenSSL", once)], f"The peer: {said}; it checks less (attestation_peer.py)."


def _pem(der: bytes) -> bytes:
    from cryptography import x509  # noqa: PLC0415 - only the peer wants PEM
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def hostile_documents(document: bytes) -> dict[str, bytes]:
    """The worst inputs that we know, made from a genuine document; the signatures are nobody's."""
    fields = cbor.decode(cose.decode_sign1(document).payload)
    certificates: list[bytes] = fields["cabundle"]  # type: ignore[index]
    size = MAX_DOCUMENT - 200
    payloads = {
        "sixteen thousand integers": cbor.head(4, size - 3) + bytes(size - 3),
        "two thousand keys": b"\xbf" + b"".join(cbor.head(0, at << 20) + b"\0" for at in range(256, 2900)) + b"\xff",
        "eight thousand chunks": b"\x5f" + b"\x40" * (size - 2) + b"\xff",
        "two thousand texts": b"\x9f" + b"\x67abcdefg" * (size // 8 - 1) + b"\xff",
        "the deepest nesting, again and again": b"\x9f" + (b"\x9f" * 15 + b"\xff" * 15) * (size // 30 - 1) + b"\xff",
        "twenty certificates": _encoded(fields, cabundle=(certificates * 5)[:20]),
        "a chain of ten, wrong at its end": _encoded(fields, cabundle=[certificates[0]] * 5 + certificates[:4]),
    }
    sign1s = {name: cose.Sign1(cose.ES384_PROTECTED, payload, b"\1" * 96) for name, payload in payloads.items()}
    return {name: cose.encode_sign1(sign1) for name, sign1 in sign1s.items()}


def _hostile(subject: Subject) -> list[dict[str, object]]:
    """What they cost before they are refused."""
    documents = hostile_documents(subject.data)
    return [{"input": name, "bytes": len(data)} | _refusal(subject, data) for name, data in documents.items()]


def _encoded(fields: object, **changes: object) -> bytes:
    return cbor.encode({**fields, **changes})  # type: ignore[dict-item]


def _refusal(subject: Subject, data: bytes) -> dict[str, object]:
    hostile = Subject(data, subject.root, subject.at)
    times, step = [], 0
    for _ in range(5):
        start = time.perf_counter()
        try:
            hostile.verify()
        except AttestationError as error:
            step = error.step
        times.append(time.perf_counter() - start)
    tracemalloc.start()
    try:
        hostile.verify()
    except AttestationError:
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"refused in step": step, "ms": round(min(times) * 1e3, 2), "peak KiB": round(peak / 1024)}


def options(parser: argparse.ArgumentParser) -> None:
    """How often, what and against whom."""
    parser.add_argument("--count", type=int, default=5, metavar="N", help="documents a round; 5 when not given")
    parser.add_argument("--document", type=Path, metavar="FILE", help="one that AWS issued, in place of our own")
    parser.add_argument("--peer", default=sys.executable, metavar="PYTHON", help="interpreter with cbor2 and pyOpenSSL")


if __name__ == "__main__":
    sys.exit(main("attestation", __doc__ or "", benchmark, options))
