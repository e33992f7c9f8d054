"""Reading cpio archives: against our writer, against GNU cpio, and against bytes of any kind."""

from __future__ import annotations

import shutil
import stat
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alcove.codec import cpio
from alcove.codec.cpio_reader import CpioReader, Data, Event, Member, Trailer
from alcove.errors import ImageFormatError

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name and name != b"TRAILER!!!")
NUMBERS = st.integers(0, 0xFFFFFFFF)


def read(data: bytes, chunk: int = 1 << 20) -> list[Event]:
    """All events, with the data of a member in one piece whatever the chunks were."""
    reader = CpioReader()
    events: list[Event] = []
    for at in range(0, len(data), chunk):
        for event in reader.receive(data[at : at + chunk]):
            if isinstance(event, Data) and isinstance(events[-1], Data):
                events[-1] = Data(events[-1].chunk + event.chunk)
            else:
                events.append(event)
    reader.close()
    return events


def outcome(data: bytes, chunk: int) -> list[Event] | ImageFormatError:
    try:
        return read(data, chunk)
    except ImageFormatError as error:
        return error


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


ONE = b"".join(cpio.archive([cpio.file(b"init", b"hello", 0o755)]))


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=40), NUMBERS, NUMBERS, NUMBERS)), st.integers(1, 600))
def test_what_was_written_is_read(members: list[tuple[bytes, bytes, int, int, int]], chunk: int) -> None:
    """Every field and every byte of data comes back, in whatever chunks the archive arrives."""
    entries = [
        cpio.Entry(name, stat.S_IFREG | 0o4755, uid, gid, mtime, len(data), data=lambda data=data: (data,))
        for name, data, uid, gid, mtime in members
    ]
    events = read(b"".join(cpio.archive(entries)), chunk)
    found = [event for event in events if isinstance(event, Member)]
    assert [(m.name, m.uid, m.gid, m.mtime, m.size) for m in found] == [
        (name, uid, gid, mtime, len(data)) for name, data, uid, gid, mtime in members
    ]
    assert [m.inode for m in found] == list(range(721, 721 + len(members)))
    assert b"".join(e.chunk for e in events if isinstance(e, Data)) == b"".join(data for _, data, *_ in members)
    assert isinstance(events[-1], Trailer)


def test_an_archive_of_gnu_cpio_is_read(tmp_path: Path) -> None:
    """Hard links, directories and symlinks of another writer come with its numbers."""
    if shutil.which("cpio") is None:
        pytest.skip("there is no cpio program on this machine")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"content")
    (tmp_path / "d" / "g").hardlink_to(tmp_path / "d" / "f")
    (tmp_path / "l").symlink_to("d/f")
    names = b"d\nd/f\nd/g\nl\n"
    for form in ("newc", "crc"):
        done = subprocess.run(
            ["cpio", "-o", "-H", form, "--quiet"], input=names, cwd=tmp_path, capture_output=True, check=True
        )
        members = {event.name: event for event in read(done.stdout) if isinstance(event, Member)}
        assert set(members) == {b"d", b"d/f", b"d/g", b"l"}
        assert members[b"d/f"].inode == members[b"d/g"].inode
        assert members[b"d/f"].links == 2
        assert members[b"d/f"].size + members[b"d/g"].size == 7
        assert stat.S_ISLNK(members[b"l"].mode)


def test_archives_may_follow_each_other() -> None:
    """Two archives with zeros between them, the second without a trailer, are one stream of members."""
    bare = ONE[: ONE.index(b"070701", 6)]
    events = read(ONE + bytes(8) + bare)
    assert [type(event) for event in events] == [Member, Data, Trailer, Member, Data]


@settings(deadline=None)
@given(st.binary(max_size=400) | st.tuples(st.integers(0, len(ONE) - 1), st.binary(min_size=1, max_size=30)))
def test_bytes_of_any_kind_give_events_or_one_error(thing: bytes | tuple[int, bytes]) -> None:
    """Noise, or an archive with noise in it: members, or ImageFormatError with field and offset, and nothing else."""
    data = thing if isinstance(thing, bytes) else patched(ONE, *thing)
    whole = outcome(data, 1 << 20)
    if isinstance(whole, ImageFormatError):
        assert whole.field
        assert 0 <= (whole.offset if whole.offset is not None else -1) <= len(data)
        assert isinstance(outcome(data, 7), ImageFormatError)
    else:
        assert outcome(data, 7) == whole


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (0, b"070707", "magic"),
        (14, b"0000g1ed", "mode"),
        (14, b"+00081ed", "mode"),
        (54, b"ffffffff", "file size"),
        (94, b"00000000", "namesize"),
        (94, b"00000001", "namesize"),
        (94, b"00001001", "namesize"),
        (94, b"ffffffff", "namesize"),
        (94, b"00000004", "name"),
        (111, b"\0", "name"),
    ],
)
def test_a_broken_field_is_named(offset: int, value: bytes, field: str) -> None:
    """What the kernel would stumble over, or drop in silence, is refused with the field's name."""
    with pytest.raises(ImageFormatError) as caught:
        read(patched(ONE, offset, value))
    assert caught.value.field == field


@pytest.mark.parametrize("cut", [50, 112, 118])
def test_an_archive_that_is_cut_is_refused(cut: int) -> None:
    """The end inside a header, a name or the data does not pass for the end of the archive."""
    with pytest.raises(ImageFormatError, match="ends inside"):
        read(ONE[:cut])


def test_a_header_out_of_step_is_refused() -> None:
    """The kernel looks for headers at multiples of 4 alone."""
    with pytest.raises(ImageFormatError, match="multiple of 4"):
        read(b"\0" + ONE)


def test_the_sum_of_the_data_is_checked() -> None:
    """With the second magic the header sums the data; a wrong sum is refused, the right one passes."""
    data = patched(ONE, 0, b"070702")
    right = patched(data, 102, b"%08x" % sum(b"hello"))
    assert Data(b"hello") in read(right, 3)
    with pytest.raises(ImageFormatError, match="sum"):
        read(data)


def test_a_claim_costs_no_memory() -> None:
    """A member that claims 4 GiB is given on as its bytes come; the reader holds none of them."""
    head = patched(ONE, 54, b"ffffffff")[:116]
    reader = CpioReader()
    chunk = bytes(1 << 20)
    list(reader.receive(head))
    tracemalloc.start()
    for _ in range(64):
        for _event in reader.receive(chunk):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
