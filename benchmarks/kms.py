"""Requests a second of the KMS over loopback: 8 connections, real SigV4, SQLite, one worker, every record on disk.

Beside it, in the same run: moto's server from PyPI, which checks no signature, evaluates no policy and writes no record
(`scripts/setup --benchmarks` installs it); and for attested calls, what the bare primitives of one allow on one core.

    python -m benchmarks.kms                      rates, attested calls
    python -m benchmarks.kms --memory 1000000     resident memory over so many requests
    python -m benchmarks.kms --keys 100000        a store of so many keys, against one of ten
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from alcove.attestation.document import open_document
from alcove.codec import cose
from alcove.kms.keys import Key, Material
from alcove.kms.stores import open_store
from benchmarks.harness import Promise, Report, at_least, at_most, main, note
from benchmarks.kms_servers import PCRS, Enclave, Target, alcove, moto, text
from benchmarks.process import tree_memory

CONNECTIONS = 8
SIGNED = 200  # different requests; their signatures are good for five minutes
SAMPLES = 20  # moments at which memory is looked at
OPERATIONS = ("Encrypt", "Decrypt", "GenerateDataKey")
Row = Mapping[str, Any]


def benchmark(arguments: argparse.Namespace) -> Report:
    """What was asked for."""
    with tempfile.TemporaryDirectory(prefix="alcove-bench-") as name:
        directory = Path(name)
        if arguments.memory:
            return _memory(directory, arguments.memory)
        if arguments.keys:
            return _many_keys(directory, arguments.keys, arguments.seconds)
        return _rates(directory, arguments)


def _requests(target: Target, key_id: str) -> dict[str, list[bytes]]:
    blob = target.client.encrypt(KeyId=key_id, Plaintext=bytes(32))["CiphertextBlob"]
    bodies = {
        "Encrypt": {"KeyId": key_id, "Plaintext": text(bytes(32))},
        "Decrypt": {"CiphertextBlob": text(blob)},
        "GenerateDataKey": {"KeyId": key_id, "KeySpec": "AES_256"},
    }
    return {name: [target.signed(name, bodies[name]) for _ in range(SIGNED)] for name in OPERATIONS}


def _rates(directory: Path, arguments: argparse.Namespace) -> Report:
    """Rates in turn, the best of each."""
    enclave = Enclave.make(directory)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    limits: list[float] = []
    disk: list[float] = []
    with alcove(directory, enclave.authority) as ours, moto() as theirs:
        targets = {"alcove": ours} | ({"moto": theirs} if theirs else {})
        keys = {name: target.client.create_key()["KeyMetadata"]["KeyId"] for name, target in targets.items()}
        attested = _attested_key(ours)
        for number in range(arguments.rounds):
            note(f"round {number + 1} of {arguments.rounds}")
            for name, target in targets.items():
                for operation, requests in _requests(target, keys[name]).items():
                    result = target.load(requests, arguments.seconds, CONNECTIONS)
                    found.setdefault((operation, name), []).append(result)
            result = ours.load(_attested(ours, enclave, attested), arguments.seconds, CONNECTIONS)
            found.setdefault(("Decrypt, attested", "alcove"), []).append(result)
            limits.append(_primitives(enclave))
            disk.append(_disk(directory))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as fast, alcove(directory, None, Path(fast) / "log") as ours:
        for operation, requests in _requests(ours, keys["alcove"]).items():
            result = ours.load(requests, arguments.seconds, CONNECTIONS)
            found.setdefault((operation, "alcove, its audit log in memory"), []).append(result)
    return _report(found, max(limits), max(disk), bool(theirs))


def _report(found: Mapping[tuple[str, str], Sequence[Row]], limit: float, disk: float, compared: bool) -> Report:
    best = {name: max(results, key=_rate) for name, results in found.items()}
    rows = [
        {
            "operation": operation,
            "server": server,
            "a second": round(_rate(result)),
            "p50 ms": round(result["p50"] * 1e3, 2),
            "p99 ms": round(result["p99"] * 1e3, 2),
        }
        for (operation, server), result in best.items()
    ]
    rows.append({"operation": "bare primitives of one attested Decrypt", "server": "", "a second": round(limit)})
    rows.append(
        {"operation": f"{CONNECTIONS} records, then one wait for the disk", "server": "", "a second": round(disk)}
    )
    promises: list[Promise] = []
    for operation in OPERATIONS:
        ours = best[operation, "alcove"]
        promises.append(at_least(f"{operation}, a second", _rate(ours), 5000))
        if compared:
            promises.append(at_least(f"{operation} against moto", _rate(ours) / _rate(best[operation, "moto"]), 20))
        promises.append(at_most(f"{operation}, p99 against p50", ours["p99"] / ours["p50"], 5))
    attested = best["Decrypt, attested", "alcove"]
    promises.append(at_least("attested Decrypt against the bare primitives", _rate(attested) / limit, 0.5))
    promises.append(at_most("attested Decrypt, p99 against p50", attested["p99"] / attested["p50"], 5))
    return Report([], promises, {f"{CONNECTIONS} connections": rows})


def _rate(result: Row) -> float:
    return float(result["requests"] / result["seconds"])


def _attested_key(target: Target) -> str:
    """A key that opens for one image alone."""
    condition = {f"kms:RecipientAttestation:PCR{n}": PCRS[n].hex() for n in (0, 1, 2)}
    root = {"AWS": "arn:aws:iam::111122223333:root"}
    plain = ["kms:Encrypt", "kms:PutKeyPolicy", "kms:DescribeKey"]
    statements = [
        {"Effect": "Allow", "Principal": root, "Action": plain, "Resource": "*"},
        {
            "Effect": "Allow",
            "Principal": root,
            "Action": "kms:Decrypt",
            "Resource": "*",
            "Condition": {"StringEqualsIgnoreCase": condition},
        },
    ]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    return str(target.client.create_key(Policy=policy)["KeyMetadata"]["KeyId"])


def _attested(target: Target, enclave: Enclave, key_id: str) -> list[bytes]:
    blob = text(target.client.encrypt(KeyId=key_id, Plaintext=bytes(32))["CiphertextBlob"])
    recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
    return [
        target.signed(
            "Decrypt", {"CiphertextBlob": blob, "Recipient": recipient | {"AttestationDocument": text(document)}}
        )
        for document in (enclave.document() for _ in range(SIGNED))
    ]


def _primitives(enclave: Enclave) -> float:
    """How often a second one core can do one P-384 verification, one RSA-2048 OAEP encryption and one AES-GCM.

    What is verified is as long as what is signed of a real document. The RSA key is loaded beforehand, as the server
    keeps it. A call takes an HKDF, an HMAC, AES-CBC and some SHA-256 beside these; they are not counted.
    """
    signer = ec.generate_private_key(ec.SECP384R1())
    signed, _ = open_document(enclave.document())
    message, es384 = cose.sign1_structure(signed.protected, signed.payload), ec.ECDSA(hashes.SHA384())
    signature, verifier = signer.sign(message, es384), signer.public_key()
    key: Any = serialization.load_der_public_key(enclave.public_key)
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    cipher, count = AESGCM(bytes(32)), 500
    begin = time.perf_counter()
    for _ in range(count):
        verifier.verify(signature, message, es384)
        key.encrypt(bytes(32), oaep)
        cipher.encrypt(bytes(12), bytes(32), None)
    return count / (time.perf_counter() - begin)


def _disk(directory: Path) -> float:
    """How many records of usual size a second reach the disk when as many as there are connections go together."""
    record, count = bytes(900) * CONNECTIONS, 0
    with (directory / "records").open("ab", buffering=0) as file:
        begin = time.perf_counter()
        while time.perf_counter() - begin < 1:
            file.write(record)
            os.fdatasync(file.fileno())
            count += CONNECTIONS
        return count / (time.perf_counter() - begin)


def _memory(directory: Path, total: int) -> Report:
    """Memory at `SAMPLES` moments at least, and what it grows by once the first tenth has warmed everything."""
    rows: list[dict[str, float]] = []
    with alcove(directory) as ours:
        key_id = ours.client.create_key()["KeyMetadata"]["KeyId"]
        done, seconds = 0, 1.0
        while done < total:
            before = done
            for requests in _requests(ours, key_id).values():
                done += ours.load(requests, seconds, CONNECTIONS)["requests"]
            rows.append({"requests": done, "resident MB": round(tree_memory([ours.process]) / 1e6, 1)})
            note(f"{done} of {total} requests: {rows[-1]['resident MB']} MB")
            seconds = min(10.0, max(0.2, seconds * total / SAMPLES / (done - before)))
    warm = [row for row in rows if row["requests"] >= done / 10]
    half = len(warm) // 2
    early, late = (statistics.mean(row["resident MB"] for row in part) for part in (warm[:half], warm[half:]))
    slope, _ = statistics.linear_regression([row["requests"] for row in warm], [row["resident MB"] for row in warm])
    growth = slope * (warm[-1]["requests"] - warm[0]["requests"])
    return Report(
        [],
        [
            at_most("memory of the second half against the first, warm", late / early, 1.05),
            at_most("growth from the first tenth to the end, MB, by a line through all", growth, 3),
        ],
        {"memory": rows},
    )


def _many_keys(directory: Path, count: int, seconds: float) -> Report:
    """The same calls on a store of many keys, each about another one, and on a store of ten."""
    rows, found = [], {}
    for name, size in (("ten", 10), ("many", count)):
        place = directory / name
        place.mkdir()
        ids = _fill(place, size)
        with alcove(place) as ours:
            some = random.sample(ids, min(len(ids), 2000))
            work: dict[str, list[bytes]] = {
                "DescribeKey": [ours.signed("DescribeKey", {"KeyId": key_id}) for key_id in some],
                "Encrypt": [ours.signed("Encrypt", {"KeyId": key_id, "Plaintext": text(bytes(32))}) for key_id in some],
                "ListKeys of 100": [ours.signed("ListKeys", {"Limit": 100})] * 50,
            }
            for operation, requests in work.items():
                found[operation, name] = _rate(ours.load(requests, seconds, CONNECTIONS))
                rows.append({"keys": size, "operation": operation, "a second": round(found[operation, name])})
            rows.append({"keys": size, "operation": "every page of ListKeys, ms each", "a second": _pages(ours, size)})
    promises = [
        at_least(f"{operation} with {count} keys against ten", found[operation, "many"] / found[operation, "ten"], 0.8)
        for operation in ("DescribeKey", "Encrypt")
    ]
    return Report([], promises, {"many keys": rows})


def _fill(directory: Path, count: int) -> list[str]:
    """A store with so many keys, made in one transaction."""
    ids = [f"{random.getrandbits(32):08x}-0000-4000-8000-{number:012x}" for number in range(count)]
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
        "Action": "kms:*",
        "Resource": "*",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    url = f"sqlite:///{directory}/kms.sqlite"
    with contextlib.closing(open_store(url, directory / "root.key")) as store, store.transaction():
        for key_id in ids:
            key = Key(key_id, time.time(), policy, "11" * 32, "us-east-1")
            store.create_key(key)
            store.save_material(key, Material(key.material_id, 0), os.urandom(32))
    return ids


def _pages(target: Target, count: int) -> float:
    times, client, marker = [], target.client, None
    seen = 0
    while True:
        begin = time.perf_counter()
        page = client.list_keys(Limit=1000, **({"Marker": marker} if marker else {}))
        times.append(time.perf_counter() - begin)
        seen += len(page["Keys"])
        marker = page.get("NextMarker")
        if not page["Truncated"]:
            assert seen == count
            return round(statistics.median(times) * 1e3, 1)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=3, metavar="S", help="for each measurement; 3 when not given")
    parser.add_argument("--memory", type=int, metavar="N", help="measure memory over N requests instead")
    parser.add_argument("--keys", type=int, metavar="N", help="measure a store of N keys instead")


if __name__ == "__main__":
    sys.exit(main("kms", "The KMS against moto's server and against its primitives.", benchmark, _options))
