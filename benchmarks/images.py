"""Images to measure with: always the same bytes for the same size.

A container image of n MiB has, by bytes, 60 % large files (4 to 64 MiB) and 40 % small ones (mostly 1 to 100 KiB, some
25 000 for a GiB), in five layers of unequal size. Its bytes are either random, which no compression helps, or text of
words, which gzip makes less than half of: what a real layer holds is between the two.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from alcove.image.builder import NewHeader, NewSection, write_eif
from alcove.image.format import SectionType
from alcove.image.metadata import ImageMetadata
from benchmarks.harness import MIB

_SHARES = (0.08, 0.12, 0.5, 0.25, 0.05)  # of the image's bytes, by layer
_LARGE_SHARE = 0.6
_WORDS = 4096
_TYPE = "application/vnd.oci.image"


def apart(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a function gives, called in a process of its own, so that ours stays small (see `process`)."""
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        return pool.submit(function, *arguments, **options).result()


class Bytes:
    """An endless file of random bytes (AES in counter mode) or of words, for `tarfile` to read."""

    def __init__(self, seed: int, *, text: bool = False) -> None:
        stream = Cipher(algorithms.AES(seed.to_bytes(16, "big")), modes.CTR(bytes(16))).encryptor()
        self._pool = memoryview(_words() if text else b"")
        self._random = random.Random(seed)  # noqa: S311  # the same on every machine
        self._next = stream.update

    def read(self, size: int = MIB) -> bytes:
        """The next `size` bytes."""
        if not self._pool:
            return self._next(bytes(size))
        # Pieces of a pool that is far larger than gzip's window of 32 KiB, at random places.
        start = self._random.randrange(len(self._pool) - size)
        return bytes(self._pool[start : start + size])


@functools.lru_cache
def _words() -> bytes:
    rng = random.Random(0)  # noqa: S311
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 11))) for _ in range(_WORDS)]
    weights = [1 / (rank + 1) for rank in range(_WORDS)]  # Zipf, as languages have it
    return " ".join(rng.choices(words, weights, k=3 * MIB)).encode()


def write_image(path: Path, size: int) -> None:
    """An EIF of `size` bytes or a little more, nearly all of it the application ramdisk."""
    kernel, boot = 12 * MIB, MIB
    metadata = ImageMetadata("benchmark", "1", {"BuildTime": "2026"}, {"Id": "sha256:0"}, {})
    sections = (
        NewSection(SectionType.KERNEL, _chunks(Bytes(1), kernel)),
        NewSection(SectionType.CMDLINE, (b"reboot=k panic=30",)),
        NewSection(SectionType.METADATA, (metadata.pack(),)),
        NewSection(SectionType.RAMDISK, _chunks(Bytes(2), boot)),
        NewSection(SectionType.RAMDISK, _chunks(Bytes(3), max(MIB, size - kernel - boot))),
    )
    write_eif(path, NewHeader(0), sections)


def _chunks(source: Bytes, size: int) -> Iterator[bytes]:
    while size:
        chunk = source.read(min(MIB, size))
        size -= len(chunk)
        yield chunk


def write_blobs(directory: Path) -> None:
    """Boot files as AWS ships them, of the usual sizes."""
    directory.mkdir()
    for name, size in (("bzImage", 12 * MIB), ("init", MIB // 2), ("nsm.ko", MIB // 64)):
        (directory / name).write_bytes(Bytes(len(name)).read(size))
    (directory / "cmdline").write_text("reboot=k panic=30 pci=off nomodules console=ttyS0\n")


@dataclass(slots=True)
class _Digested:
    """A file to write to that keeps the digest and length of what was written."""

    file: IO[bytes]
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    size: int = 0

    def write(self, data: bytes) -> int:
        """Write and digest."""
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


class _Gzip:
    """As gzip's default, into a file."""

    def __init__(self, file: _Digested) -> None:
        self._file = file
        self._deflate = zlib.compressobj(wbits=31)

    def write(self, data: bytes) -> int:
        """Compress and write."""
        self._file.write(self._deflate.compress(data))
        return len(data)

    def close(self) -> None:
        """Write what is left."""
        self._file.write(self._deflate.flush())


def write_layout(layout: Path, size: int, *, gzip: bool = False, text: bool = False, scale: float = 1) -> int:
    """An OCI layout of an image of `size` bytes by the recipe above; the number of its files.

    `scale` makes every file that many times as large, so that there are fewer of them, or more.
    """
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        made = list(
            pool.map(
                lambda n: _write_layer(blobs, n, _lengths(n, int(size * _SHARES[n]), scale), gzip, text),
                range(len(_SHARES)),
            )
        )
    _write_manifest(layout, [layer for layer, _, _ in made], [diff_id for _, diff_id, _ in made])
    return sum(count for _, _, count in made)


def write_tiny_files(layout: Path, count: int) -> None:
    """An OCI layout of one layer with `count` empty files, a hundred in a directory."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    path = blobs / "layer"
    with path.open("wb") as file:
        out = _Digested(file)
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            for number in range(count):
                archive.addfile(tarfile.TarInfo(f"data/{number // 100:05}/{number % 100:02}-file"))
    diff_id = _named(path, out)
    _write_manifest(layout, [{"digest": diff_id, "size": out.size, "mediaType": f"{_TYPE}.layer.v1.tar"}], [diff_id])


def _write_layer(
    blobs: Path, number: int, lengths: Iterable[int], gzip: bool, text: bool
) -> tuple[dict[str, object], str, int]:
    """One layer; its descriptor, its diff_id and how many files it has."""
    source, path, count = Bytes(100 + number, text=text), blobs / f"layer-{number}", 0
    with path.open("wb") as file:
        blob = _Digested(file)
        packed = _Gzip(blob) if gzip else blob
        out = _Digested(packed)  # type: ignore[arg-type]
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            for length in lengths:
                info = tarfile.TarInfo(f"opt/{number}/{count // 200:04}/file-{count:06}.bin")
                info.size, info.mode, info.mtime = length, 0o644, 1_700_000_000 + count
                archive.addfile(info, source)
                count += 1
        if isinstance(packed, _Gzip):
            packed.close()
    kind = f"{_TYPE}.layer.v1.tar" + ("+gzip" if gzip else "")
    descriptor: dict[str, object] = {"mediaType": kind, "digest": _named(path, blob), "size": blob.size}
    return descriptor, f"sha256:{out.digest.hexdigest()}", count


def _lengths(seed: int, size: int, scale: float) -> Iterator[int]:
    """Lengths of files that add up to some `size`: large ones first, then small ones, lognormal about 10 KiB."""
    rng = random.Random(seed)  # noqa: S311
    left = int(size / scale)
    small = left - int(left * _LARGE_SHARE)
    while left:
        if left > small:
            length = min(rng.randint(4 * MIB, 64 * MIB), left - small)
        else:
            length = min(left, MIB, int(math.exp(rng.gauss(math.log(8192), 1.2))) + 1)
        left -= length
        yield int(length * scale)


def _named(path: Path, written: _Digested) -> str:
    digest = written.digest.hexdigest()
    path.rename(path.with_name(digest))
    return f"sha256:{digest}"


def _write_manifest(layout: Path, layers: list[dict[str, object]], diff_ids: list[str]) -> None:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/app"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": _json_blob(layout, config, "config"),
        "layers": layers,
    }
    descriptor = _json_blob(layout, manifest, "manifest")
    index = {"schemaVersion": 2, "manifests": [descriptor]}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps(index))


def _json_blob(layout: Path, value: object, kind: str) -> dict[str, object]:
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": f"{_TYPE}.{kind}.v1+json", "digest": f"sha256:{digest}", "size": len(data)}
