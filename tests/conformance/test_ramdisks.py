"""Ramdisks, as the vectors say."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import partial

import pytest
from tests.conformance.corpus import check_fault, vectors
from vectors.vectorfile import Vector

from alcove.codec import cpio
from alcove.codec.cpio_reader import CpioReader, Data, Event, Member
from alcove.errors import ImageFormatError


def events(data: bytes, step: int) -> Iterator[Event]:
    """The events of an archive that comes in chunks."""
    reader = CpioReader()
    for at in range(0, len(data), step):
        yield from reader.receive(data[at : at + step])
    reader.close()


def entries(data: bytes, step: int) -> list[tuple[Member, bytes]]:
    """The members of an archive, each with its data."""
    found: list[tuple[Member, list[bytes]]] = []
    for event in events(data, step):
        if isinstance(event, Member):
            found.append((event, []))
        elif isinstance(event, Data):
            found[-1][1].append(event.chunk)
    return [(member, b"".join(parts)) for member, parts in found]


def line(member: Member, content: bytes) -> str:
    """A member as the vectors write it."""
    target = f" -> {content.decode()}" if stat.S_ISLNK(member.mode) else ""
    head = f"{member.mode:06o} {member.uid} {member.gid} {member.mtime} {member.size}"
    return f"{head} {member.name.decode()}{target}"


@vectors("cpio")
@pytest.mark.parametrize("step", [1, 7, 512, 1 << 20])
def test_archives(vector: Vector, step: int) -> None:
    """The same members, or the same fault, however the archive is cut into chunks."""
    step = max(step, len(vector.payload) >> 14)
    if vector.get("expect") == "refused":
        with pytest.raises(ImageFormatError) as caught:
            entries(vector.payload, step)
        check_fault(vector, caught.value)
        return
    assert [line(*entry) for entry in entries(vector.payload, step)] == vector.all("entry")


@vectors("cpio", but="refused")
def test_the_writer_makes_what_it_read(vector: Vector) -> None:
    """The archives that linuxkit would write come out of our writer bit for bit."""
    if not vector.get("source"):
        return  # some writer's, not linuxkit's
    made = [
        cpio.Entry(m.name, m.mode, m.uid, m.gid, m.mtime, m.size, m.rdev, partial(iter, (data,)))
        for m, data in entries(vector.payload, 4096)
    ]
    assert b"".join(cpio.archive(made)) == vector.payload
