"""An OCI image layout on disk, flattened to one tree (OCI image specification 1.1, "image-layout.md", "layer.md").

1. `index.json` names one manifest; manifest and configuration are bounded JSON blobs whose digests are checked
2. a layer's digest is checked before a byte of it is interpreted
3. it is decompressed to a spool file, whose digest must be the configuration's diff_id
4. its members become a tree that refers to the spool by offset: file data is never in memory
5. the layers' trees are laid on each other

A layer that leaves out a directory's entry keeps the attributes the directory has below.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import zlib
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import IO, Any, BinaryIO, Final

from alcove.errors import ImageFormatError, MachineError
from alcove.image.sources.tar import Kind, Member, members
from alcove.image.sources.tree import Data, Node, find, new_directory, overlay, parent, split

MAX_JSON: Final = 4 << 20  # OCI distribution specification, "Pushing Manifests": 4 MiB
MAX_LAYERS: Final = 512  # ours; Docker stops at 127
MAX_LAYER: Final = 64 << 30  # ours: bytes of a layer after decompression
MAX_ENTRIES: Final = 4_000_000  # ours: members of all layers, at some hundred bytes of memory each
ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "aarch64"}  # eif.md §7.6

_CHUNK: Final = 1 << 20
_COMPRESSED_CHUNK: Final = 1 << 17  # zlib gives back what it did not use of it, as a copy
_AT_ONCE: Final = 4  # layers that are made ready at the same time, at a few chunks of memory each
_DIGEST: Final = re.compile(r"(sha256|sha512):([0-9a-f]{64,128})")
_WHITEOUT: Final = b".wh."  # layer.md "Whiteouts"
_OPAQUE: Final = b".wh..wh..opq"
_TYPES: Final = {
    Kind.FILE: stat.S_IFREG, Kind.SYMLINK: stat.S_IFLNK, Kind.CHAR: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK, Kind.DIRECTORY: stat.S_IFDIR, Kind.FIFO: stat.S_IFIFO,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OciImage:
    """One image of a layout: its configuration and where its layers are, lowest first."""

    digest: str
    config: dict[str, Any]
    layers: tuple[tuple[str, Path], ...]
    diff_ids: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The `config` object: Cmd, Entrypoint, Env and the like; empty when the image has none."""
        settings = self.config.get("config") or {}
        return settings if isinstance(settings, dict) else {}


@dataclass(slots=True)
class Flattened:
    """A tree, and the spool files that its data is in."""

    root: Node
    spools: list[Path] = field(default_factory=list)

    def read(self, data: Data) -> Iterator[bytes]:
        """The content of a file in chunks."""
        offset, end = data.offset, data.offset + data.size
        spool = os.open(self.spools[data.spool], os.O_RDONLY)  # a file object costs more than most files' bytes
        try:
            while offset < end and (chunk := os.pread(spool, min(end - offset, _CHUNK), offset)):
                offset += len(chunk)
                yield chunk
        finally:
            os.close(spool)


def load_layout(layout: Path) -> OciImage:
    """The one image in an OCI layout directory (step 1).

    Raises:
        ImageFormatError: When the layout is malformed or a digest is wrong.
    """
    index = _json(layout / "index.json")
    descriptor = _only(index, "index.json")
    manifest = _blob_json(layout, descriptor)
    if "manifests" in manifest:  # an index of one image, as registries keep multi-platform images
        descriptor = _only(manifest, "index")
        manifest = _blob_json(layout, descriptor)
    config_descriptor = _object(manifest.get("config"), "manifest config")
    config = _blob_json(layout, config_descriptor)
    layers = manifest.get("layers")
    diff_ids = _object(config.get("rootfs"), "config rootfs").get("diff_ids")
    if not isinstance(layers, list) or not isinstance(diff_ids, list) or len(layers) != len(diff_ids):
        raise ImageFormatError("the manifest's layers and the configuration's diff_ids do not match", field="layers")
    if len(layers) > MAX_LAYERS:
        raise ImageFormatError(f"{len(layers)} layers are more than {MAX_LAYERS}", field="layers")
    digests = [str(_object(layer, "layer").get("digest")) for layer in layers]
    return OciImage(
        digest=str(config_descriptor["digest"]),
        config=config,
        layers=tuple((digest, _blob_path(layout, digest)) for digest in digests),
        diff_ids=tuple(str(diff_id) for diff_id in diff_ids),
    )


def holds_one_image(layout: Path) -> bool:
    """Whether a directory is a layout with one image, not one image for each of several platforms."""
    try:
        descriptor = _only(_json(layout / "index.json"), "index.json")
        manifest = _blob_json(layout, descriptor)
    except ImageFormatError:
        return False
    return "manifests" not in manifest


def flatten(image: OciImage, directory: Path) -> Flattened:
    """The image's layers as one tree (steps 2 to 5); spool files go to `directory`.

    Raises:
        ImageFormatError: When a layer is malformed or a digest is wrong.
        MachineError: When a layer is compressed with zstd and there is no such program.
    """
    flattened = Flattened(new_directory())
    entries = 0
    with closing(_spools(image, directory)) as spools:
        for index, spool in enumerate(spools):
            flattened.spools.append(spool)
            layer = new_directory(implied=True)
            with spool.open("rb") as file:
                for member in members(file, spool.stat().st_size):
                    entries += 1
                    if entries > MAX_ENTRIES:
                        raise ImageFormatError(f"more than {MAX_ENTRIES} entries", field="layers")
                    _place(member, layer, flattened.root, index)
            overlay(flattened.root, layer)
    return flattened


def _spools(image: OciImage, directory: Path) -> Generator[Path, None, None]:
    """The layers as plain tar files, lowest first; the next ones are made ready meanwhile, each in a thread."""
    stopped = Event()

    def ready(index: int) -> Path:
        (digest, path), diff_id = image.layers[index], image.diff_ids[index]
        _check_digest(path, digest, stopped)
        spool = _decompressed(path, directory / f"layer-{index}.tar", stopped)
        if spool != path or diff_id != digest:
            _check_digest(spool, diff_id, stopped)
        return spool

    with ThreadPoolExecutor(min(_AT_ONCE, len(os.sched_getaffinity(0)))) as pool:
        largest_first = sorted(range(len(image.layers)), key=lambda index: -_size(image.layers[index][1]))
        futures = {index: pool.submit(ready, index) for index in largest_first}
        try:
            for index in range(len(image.layers)):
                yield futures[index].result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _pieces(content: Iterable[bytes], stopped: Event) -> Iterator[bytes]:
    """The same, until nobody waits for it any more."""
    for piece in content:
        if stopped.is_set():
            raise InterruptedError
        yield piece


def _place(member: Member, layer: Node, below: Node, spool: int) -> None:
    """Put a member into its layer's tree; `below` is what the lower layers made."""
    parts = split(member.name)
    if not parts or any(part.startswith(b".wh..wh.") and part != _OPAQUE for part in parts):
        return  # the root itself, or AUFS's own book-keeping (layer.md "Whiteouts")
    name = parts[-1]
    directory = parent(layer, parts)
    if name == _OPAQUE:
        directory.opaque = True
    elif name.startswith(_WHITEOUT):
        directory.whiteouts.add(name[len(_WHITEOUT) :])
    elif member.kind is Kind.LINK:
        directory.children[name] = _link_target(member, layer, below)
    elif member.kind is Kind.DIRECTORY:
        node = directory.children.get(name)
        if node is None or not node.is_dir:
            node = directory.children[name] = new_directory()
        node.mode, node.uid, node.gid = stat.S_IFDIR | member.mode, member.uid, member.gid
        node.mtime, node.implied = member.mtime, False
    else:
        directory.children[name] = Node(
            mode=_TYPES[member.kind] | (0o777 if member.kind is Kind.SYMLINK else member.mode),
            uid=member.uid,
            gid=member.gid,
            mtime=member.mtime,
            rdev=member.rdev,
            target=member.target if member.kind is Kind.SYMLINK else b"",
            data=Data(spool, member.offset, member.size) if member.size else None,
        )


def _link_target(member: Member, layer: Node, below: Node) -> Node:
    parts = split(member.target)
    node = find(layer, parts) or find(below, parts)
    if node is None or node.is_dir:
        name, target = (path.decode("utf-8", "backslashreplace") for path in (member.name, member.target))
        raise ImageFormatError(
            f"{name} is a hard link to {target}, which is not a file", field="tar linkname", offset=member.offset - 512
        )
    return node


def _decompressed(path: Path, spool: Path, stopped: Event) -> Path:
    """The layer as a plain tar file: the blob itself, or a spool file."""
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":  # RFC 1952 §2.3.1
            _spool(_pieces(_gunzipped(file), stopped), spool)
            return spool
    if magic == b"\x28\xb5\x2f\xfd":  # RFC 8878 §3.1.1
        _spool_zstd(path, spool, stopped)
        return spool
    return path


def _spool(content: Iterator[bytes], spool: Path) -> None:
    size = 0
    with spool.open("wb") as out:
        for chunk in content:
            size += len(chunk)
            if size > MAX_LAYER:
                raise ImageFormatError(f"the layer is larger than {MAX_LAYER} bytes", field="layer")
            out.write(chunk)


def _gunzipped(file: BinaryIO) -> Iterator[bytes]:
    """The members of a gzip file, one after the other; at most a chunk at a time, however well it was compressed."""
    stream = zlib.decompressobj(31)
    data = file.read(_COMPRESSED_CHUNK)
    try:
        while data:
            yield stream.decompress(data, _CHUNK)
            if stream.eof:
                data = stream.unused_data or file.read(_COMPRESSED_CHUNK)
                stream = zlib.decompressobj(31) if data else stream
            else:
                data = stream.unconsumed_tail or file.read(_COMPRESSED_CHUNK)
        yield from _rest(stream)
    except zlib.error as error:
        raise ImageFormatError(f"the layer's compression is broken: {error}", field="layer") from None


def _rest(stream: Any) -> Iterator[bytes]:
    """What zlib still holds when the input is used up."""
    while not stream.eof:
        chunk = stream.decompress(b"", _CHUNK)
        if not chunk:
            raise ImageFormatError("the layer ends in the middle of its compression", field="layer")
        yield chunk


def _spool_zstd(path: Path, spool: Path, stopped: Event) -> None:
    argv = ["zstd", "--decompress", "--stdout", "--quiet", "--", str(path)]
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        hint = "install zstd (Debian: apt install zstd); `alcove doctor` shows what is missing"
        raise MachineError(
            "the program zstd, which this image's layers need, is missing", hint=hint, code="E48"
        ) from None
    with process:
        try:
            _spool(_pieces(_read_all(process.stdout), stopped), spool)
            _, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        reason = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise ImageFormatError(f"the layer's compression is broken: {''.join(reason)}", field="layer")


def _read_all(file: IO[bytes] | None) -> Iterator[bytes]:
    while file and (chunk := file.read(_CHUNK)):
        yield chunk


def _check_digest(path: Path, digest: str, stopped: Event) -> None:
    algorithm, expected = _split_digest(digest)
    if not path.is_file():  # or a pipe, which nobody would ever write to
        raise ImageFormatError(f"the blob {digest} is missing", field="layer")
    hasher = hashlib.new(algorithm)
    try:
        with path.open("rb") as file:
            for chunk in _pieces(_read_all(file), stopped):
                hasher.update(chunk)
    except InterruptedError:
        raise
    except OSError as error:
        raise ImageFormatError(f"the blob {digest} cannot be read: {error.strerror}", field="layer") from None
    actual = hasher.hexdigest()
    if actual != expected:
        raise ImageFormatError(f"the content of {digest} has the digest {algorithm}:{actual}", field="digest")


def _split_digest(digest: str) -> tuple[str, str]:
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ImageFormatError(f"{digest[:80]!r} is not a digest of SHA-256 or SHA-512", field="digest")
    return match[1], match[2]


def _blob_path(layout: Path, digest: str) -> Path:
    return layout.joinpath("blobs", *_split_digest(digest))


def _blob_json(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    digest = str(descriptor.get("digest"))
    path = _blob_path(layout, digest)
    if path.is_file() and path.stat().st_size <= MAX_JSON:
        _check_digest(path, digest, Event())
    return _json(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise ImageFormatError(f"larger than {MAX_JSON} bytes", field=path.name)
        return _object(json.loads(data), path.name)
    except OSError as error:
        raise ImageFormatError(f"not an OCI image layout: {error.strerror}", field=path.name) from None
    except (ValueError, RecursionError):
        raise ImageFormatError("not JSON", field=path.name) from None


def _object(item: object, what: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ImageFormatError("not a JSON object", field=what)
    return item


def _only(index: dict[str, Any], what: str) -> dict[str, Any]:
    manifests = index.get("manifests")
    if not isinstance(manifests, list) or len(manifests) != 1:
        raise ImageFormatError("the layout does not hold exactly one image", field=what)
    return _object(manifests[0], what)
