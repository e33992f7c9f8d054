"""Tar archives, and gzip files, for the tests of container images."""

from __future__ import annotations

import io
import tarfile
import zlib

FHCRC, FEXTRA, FNAME, FCOMMENT = 2, 4, 8, 16  # RFC 1952 §2.3.1

Item = tuple[str, dict[str, object]] | str


def layer(*items: Item, **options: object) -> bytes:
    """A tar of the items: a name, or a name with fields of TarInfo and `data`. A slash at the end is a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:  # type: ignore[call-overload]
        for item in items:
            name, fields = (item, {}) if isinstance(item, str) else item
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = 0o644, 1000
            data = bytes(fields.get("data", b""))  # type: ignore[call-overload]
            info.size = len(data)
            if name.endswith("/"):
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            for key, value in fields.items():
                if key != "data":
                    setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def symlink(name: str, target: str) -> Item:
    """A symbolic link."""
    return name, {"type": tarfile.SYMTYPE, "linkname": target}


def hard_link(name: str, target: str) -> Item:
    """A hard link."""
    return name, {"type": tarfile.LNKTYPE, "linkname": target}


def record(key: str, value: str) -> bytes:
    """One PAX record, with its own length in front."""
    rest = f" {key}={value}\n".encode()
    size = len(rest)
    while len(str(size)) + len(rest) != size:
        size = len(str(size)) + len(rest)
    return str(size).encode() + rest


def extended(kind: bytes, content: bytes) -> bytes:
    """A header of kind x, g, L or K and its content."""
    head = bytearray(layer(("extended", {"data": content}))[:512])
    return summed(bytes(head[:156] + kind + head[157:])) + content + bytes(-len(content) % 512)


def summed(header: bytes) -> bytes:
    """A header's block with its checksum put right."""
    return header[:148] + b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512])) + header[156:]


def gzip_member(data: bytes, flags: int = 0, text: bytes = b"text") -> bytes:
    """One member of a gzip file, with the optional fields of its header that the flags ask for."""
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(5) + b"\xff"
    header += len(text).to_bytes(2, "little") + text if flags & FEXTRA else b""
    header += (text + b"\0") * (bool(flags & FNAME) + bool(flags & FCOMMENT))
    header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little") if flags & FHCRC else b""
    deflate = zlib.compressobj(wbits=-15)
    trailer = zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    return header + deflate.compress(data) + deflate.flush() + trailer
