"""How two ramdisks differ: which members came, went or changed, and in what.

Core: members in, differences out. Of the members of A about 400 bytes each are held, and no content.

Two members are held against each other when their names are the same; where a name comes again, the first in A belongs
to the first in B and so on. Those that are left may differ in a slash at the end. A member with another inode number
and nothing else is not listed: a file more renumbers all that follow (eif.md §7.1), so that is said once for the
ramdisk. The same goes for the order.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from alcove.codec.cpio_reader import Member
from alcove.errors import ImageFormatError
from alcove.image.contents import Item, item_json, printable
from alcove.image.difference import Difference

MAX_MEMBERS: Final = 2_000_000  # ours: members of one ramdisk that are held in memory

_MAX_RESPELLED: Final = 100_000  # ours: members of B that wait for a name of A with another slash
_RECORD: Final = struct.Struct(">Q11I?")  # index, numbers of the member, whether it has a digest; then bytes:
# its digest or the target


def compare_ramdisks(
    where: str, pcrs: tuple[int, ...], a: Iterable[Item], b: Iterable[Item], most: int = MAX_MEMBERS
) -> Iterator[Difference]:
    """The differences between the members of two ramdisks, in the order of B; those that went come after them.

    Args:
        where: The ramdisk's name in the image.
        pcrs: The registers that it moves.
        a: The members of A.
        b: The members of B.
        most: Members of A that may be held.

    Raises:
        ImageFormatError: When a ramdisk cannot be read, or A has more members.
    """
    held = _Held(a, most)
    order, inodes = _Order(), _Inodes()
    respelled: list[Item] = []
    for item in b:
        found = held.take(item.member.name)
        if found is not None:
            order.add(found[0], item.member.name)
            inodes.add(found[1].member, item.member)
            yield from _compared(where, pcrs, found[1], item)
        elif held.holds(_respelled(item.member.name)) and len(respelled) < _MAX_RESPELLED:
            respelled.append(item)
        else:
            yield _added(where, pcrs, item)
    for item in respelled:
        found = held.take(_respelled(item.member.name))
        yield from _compared(where, pcrs, found[1], item) if found else (_added(where, pcrs, item),)
    for old in held.rest():
        yield Difference(where, f"- {_summary(old)}", pcrs, {"change": "removed"} | item_json(old))
    yield from order.differences(where, pcrs)
    yield from inodes.differences(where, pcrs)


def _respelled(name: bytes) -> bytes:
    """The name with a slash at the end when it has none, and the other way round."""
    return name[:-1] if name.endswith(b"/") else name + b"/"


def _added(where: str, pcrs: tuple[int, ...], item: Item) -> Difference:
    return Difference(where, f"+ {_summary(item)}", pcrs, {"change": "added"} | item_json(item))


def _compared(where: str, pcrs: tuple[int, ...], old: Item, item: Item) -> Iterator[Difference]:
    if changed := _changes(old, item):
        yield _changed(where, pcrs, item, changed)


def _changes(a: Item, b: Item) -> dict[str, tuple[Any, Any]]:
    """The attributes that differ, with both values; inode numbers apart."""
    old, new = item_json(a), item_json(b)
    names = [name for name in old | new if name != "inode" and old.get(name) != new.get(name)]
    changed = {name: (old.get(name), new.get(name)) for name in names}
    if a.member.device != b.member.device:
        changed["on device"] = _numbers(a.member.device), _numbers(b.member.device)
    return changed


def _numbers(device: tuple[int, int]) -> str:
    return f"{device[0]}:{device[1]}"


def _changed(where: str, pcrs: tuple[int, ...], item: Item, changed: dict[str, tuple[Any, Any]]) -> Difference:
    name = printable(item.member.name)
    texts = (f"{attribute} {_text(old)} → {_text(new)}" for attribute, (old, new) in changed.items())
    attributes = {attribute: {"a": old, "b": new} for attribute, (old, new) in changed.items()}
    detail = {"change": "changed", "name": name, "attributes": attributes}
    return Difference(where, f"~ {name}: {', '.join(texts)}", pcrs, detail)


def _text(value: object) -> object:
    return "none" if value is None else value


def _summary(item: Item) -> str:
    shown = item_json(item)
    target = f" -> {shown['target']}" if "target" in shown else ""
    size = f", {shown['size']} bytes" if "sha256" in shown else ""
    return f"{shown['name']}{target} ({shown['type']}, {shown['mode']}, {shown['uid']}:{shown['gid']}{size})"


class _Held:
    """The members of A by name, packed."""

    def __init__(self, items: Iterable[Item], most: int) -> None:
        self._records: dict[bytes, bytes | deque[bytes]] = {}
        for index, item in enumerate(items):
            if index == most:
                raise ImageFormatError(f"more than {most} members, which are too many to compare", field="ramdisk")
            self._put(item.member.name, _pack(index, item))

    def _put(self, key: bytes, record: bytes) -> None:
        before = self._records.get(key)
        if before is None:
            self._records[key] = record
        elif isinstance(before, bytes):
            self._records[key] = deque((before, record))
        else:
            before.append(record)

    def holds(self, name: bytes) -> bool:
        """Whether a member of that name was not taken yet."""
        return name in self._records

    def take(self, name: bytes) -> tuple[int, Item] | None:
        """The first member of that name that was not taken yet, and which one of A's it is."""
        found = self._records.get(name)
        if found is None:
            return None
        record = found if isinstance(found, bytes) else found.popleft()
        if isinstance(found, bytes) or not found:
            del self._records[name]
        return _unpack(record, name)

    def rest(self) -> Iterator[Item]:
        """What was not taken."""
        for name, found in self._records.items():
            for record in (found,) if isinstance(found, bytes) else found:
                yield _unpack(record, name)[1]


def _pack(index: int, item: Item) -> bytes:
    m = item.member
    numbers = (m.inode, m.mode, m.uid, m.gid, m.links, m.mtime, m.size, *m.device, *m.rdev)
    return _RECORD.pack(index, *numbers, item.sha256 is not None) + (item.sha256 or item.target)


def _unpack(record: bytes, name: bytes) -> tuple[int, Item]:
    index, inode, mode, uid, gid, links, mtime, size, *devices, digested = _RECORD.unpack_from(record)
    tail = record[_RECORD.size :]
    device, rdev = (devices[0], devices[1]), (devices[2], devices[3])
    member = Member(0, name, inode, mode, uid, gid, links, mtime, size, device, rdev)
    return index, Item(member, tail, b"") if digested else Item(member, None, tail)


class _Order:
    """Whether the members that both have come in the same order."""

    def __init__(self) -> None:
        self._indices = array("Q")
        self._last = -1
        self._first: bytes | None = None

    def add(self, index: int, name: bytes) -> None:
        self._indices.append(index)
        if index < self._last and self._first is None:
            self._first = name
        self._last = max(self._last, index)

    def differences(self, where: str, pcrs: tuple[int, ...]) -> Iterator[Difference]:
        if self._first is not None:
            moved = len(self._indices) - _longest_rise(self._indices)
            name = printable(self._first)
            what = f"the order differs: {moved} member(s) at another place, first out of turn in B: {name}"
            yield Difference(where, what, pcrs, {"change": "order", "moved": moved, "name": name})


def _longest_rise(values: Iterable[int]) -> int:
    """Length of the longest increasing subsequence: the members that need not move."""
    tails: list[int] = []
    for value in values:
        place = bisect_left(tails, value)
        tails[place : place + 1] = [value]
    return len(tails)


class _Inodes:
    """How many members that both have are numbered differently."""

    def __init__(self) -> None:
        self._count = 0
        self._first: tuple[Member, Member] | None = None

    def add(self, a: Member, b: Member) -> None:
        if a.inode != b.inode:
            self._count += 1
            self._first = self._first or (a, b)

    def differences(self, where: str, pcrs: tuple[int, ...]) -> Iterator[Difference]:
        if self._first is not None:
            a, b = self._first
            name = printable(b.name)
            what = f"{self._count} member(s) with another inode number, first {name}: {a.inode} → {b.inode}"
            detail = {"change": "inodes", "count": self._count, "name": name, "a": a.inode, "b": b.inode}
            yield Difference(where, what, pcrs, detail)
