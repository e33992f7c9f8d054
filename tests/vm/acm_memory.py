"""What a search of the parent looks for, and where: the private numbers of keys in processes and in files.

Each number is looked for as pieces of 16 bytes, in both byte orders (OpenSSL keeps numbers with the lowest byte first),
and as lines of PEM: a copy that is partly overwritten is found too.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

PIECE: Final = 16
LINE: Final = 64  # of PEM
_CHUNK: Final = 32 << 20
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def needles(key: PrivateKey) -> list[bytes]:
    """What only who has the private key can have: of P-256 the scalar, of RSA both primes and the exponent."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        whole = [numbers.p.to_bytes(128), numbers.q.to_bytes(128), numbers.d.to_bytes(256)]
        lines = range(7 * LINE, 11 * LINE, LINE)  # the private exponent's: modulus and framing end before
    else:
        whole = [key.private_numbers().private_value.to_bytes(32)]
        lines = range(LINE, 2 * LINE, LINE)  # the scalar begins at character 48
    found = [ordered[at : at + PIECE] for part in whole for ordered in (part, part[::-1]) for at in (0, len(part) // 2)]
    found += [part.hex()[:LINE].encode() for part in whole]
    body = base64.b64encode(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    return found + [body[at : at + LINE] for at in lines]


def tree(*roots: int) -> dict[int, str]:
    """Processes and everything below them: their numbers, and their command lines; not those that have just ended."""
    found, queue = dict[int, str](), list(roots)
    while queue:
        pid = queue.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            for task in Path(f"/proc/{pid}/task").iterdir():
                queue += [int(child) for child in (task / "children").read_text().split()]
    return found


def process_holds(pid: int, wanted: Iterable[bytes], *, but: str | None = None) -> bool:
    """Whether a process has one of these in its memory, or in a file that it has open; one that has ended has nothing.

    Args:
        pid: The process.
        wanted: What is looked for.
        but: In the names of mappings and files that are passed over.
    """
    wanted = list(wanted)
    try:
        return any(_contains(part, wanted) for part in itertools.chain(_memory(pid, but), _open_files(pid, but)))
    except (FileNotFoundError, ProcessLookupError):
        return False


def file_holds(path: Path, wanted: Iterable[bytes]) -> bool:
    """Whether one of these is in a file; one that is gone by now has nothing."""
    try:
        with path.open("rb") as file:
            return _contains(_chunks(file.read), list(wanted))
    except FileNotFoundError:
        return False


def _contains(chunks: Iterator[bytes], wanted: list[bytes]) -> bool:
    longest, tail = max(map(len, wanted)), b""
    for chunk in chunks:
        window = tail + chunk
        if any(each in window for each in wanted):
            return True
        tail = window[-longest:]
    return False


def _memory(pid: int, but: str | None) -> Iterator[Iterator[bytes]]:
    """The mappings that can be read."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, permissions, *_ = line.split()
        if permissions.startswith("r") and "[v" not in line and (but is None or but not in line):
            start, end = (int(part, 16) for part in span.split("-"))
            yield _mapping(pid, start, end)


def _mapping(pid: int, start: int, end: int) -> Iterator[bytes]:
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for at in range(start, end, _CHUNK):
            try:
                memory.seek(at)
                yield memory.read(min(_CHUNK, end - at))
            except (OSError, ValueError, OverflowError):
                return  # it is gone, or a device's


def _open_files(pid: int, but: str | None) -> Iterator[Iterator[bytes]]:
    """Files that are open, those without a name among them."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if not stat.S_ISREG(link.stat().st_mode) or (but is not None and but in str(link.readlink())):
                continue
            with link.open("rb") as file:
                yield _chunks(file.read)
        except OSError:
            continue


def _chunks(read: object) -> Iterator[bytes]:
    while chunk := read(_CHUNK):  # type: ignore[operator]
        yield chunk
