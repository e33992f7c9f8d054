"""`eif diff`: every cause of another measurement is named, and only what differs."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.unit.image.archives import APPLICATION, BOOT, METADATA, archive, write

from alcove.codec import cpio
from alcove.errors import ImageFormatError, InputError
from alcove.image.contents import items
from alcove.image.diff import diff_images, first_difference
from alcove.image.diff_ramdisk import compare_ramdisks
from alcove.image.difference import kernel_version
from alcove.image.sign import sign_eif
from alcove.image.signing import Signer

MakePem = Callable[[ec.EllipticCurve], tuple[bytes, bytes]]


def compare(a: Path, b: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The differences as JSON, and the registers."""
    with ExitStack() as stack:
        compared = diff_images(a, b, stack)
        found = [difference.to_json() for difference in compared.differences]
    json.dumps(found)
    return found, compared.registers()


def application(tmp_path: Path, *entries: cpio.Entry) -> list[dict[str, Any]]:
    """The differences between the usual application and one of these entries."""
    found, registers = compare(write(tmp_path / "a.eif"), write(tmp_path / "b.eif", archive(*BOOT), archive(*entries)))
    assert registers["PCR1"]["same"]
    assert not registers["PCR2"]["same"]
    assert all((entry["where"], entry["pcrs"]) == ("ramdisk 1", [0, 2]) for entry in found)
    return found


def replaced(index: int, entry: cpio.Entry) -> list[cpio.Entry]:
    return [*APPLICATION[:index], entry, *APPLICATION[index + 1 :]]


def test_the_same_image_has_no_differences(tmp_path: Path) -> None:
    """Two equal files: nothing, and all registers the same."""
    found, registers = compare(write(tmp_path / "a.eif"), write(tmp_path / "b.eif"))
    assert found == []
    assert all(register["same"] for register in registers.values())


SHELL = APPLICATION[2]
RESPELLED = APPLICATION[1].name.rstrip(b"/")


@pytest.mark.parametrize(
    ("entry", "attributes"),
    [
        (cpio.file(b"rootfs/bin/sh", b"other", 0o755), {"sha256"}),
        (cpio.file(b"rootfs/bin/sh", b"longer shell", 0o755), {"sha256", "size"}),
        (dataclasses.replace(SHELL, mode=stat.S_IFREG | 0o4755), {"mode"}),
        (dataclasses.replace(SHELL, uid=1), {"uid"}),
        (dataclasses.replace(SHELL, gid=1), {"gid"}),
        (dataclasses.replace(SHELL, mtime=1), {"mtime"}),
        (cpio.symlink(b"rootfs/bin/sh", b"ls", 0o755), {"type", "size", "sha256", "target"}),
        (cpio.Entry(b"rootfs/bin/sh", stat.S_IFCHR | 0o755, rdev=(1, 3)), {"type", "size", "sha256", "device"}),
    ],
)
def test_a_changed_file_is_named_with_its_attributes(tmp_path: Path, entry: cpio.Entry, attributes: set[str]) -> None:
    """One change, one line: the name, what changed, and both values."""
    (found,) = application(tmp_path, *replaced(2, entry))
    assert (found["change"], found["name"]) == ("changed", "rootfs/bin/sh")
    assert set(found["attributes"]) == attributes


def test_a_file_more_is_one_line_and_one_about_numbers(tmp_path: Path) -> None:
    """What follows the new file is numbered on, which is said once; no member is listed for its number alone."""
    new = cpio.file(b"rootfs/bin/new", b"new")
    added, inodes = application(tmp_path, *APPLICATION[:2], new, *APPLICATION[2:])
    assert (added["change"], added["name"], added["size"]) == ("added", "rootfs/bin/new", 3)
    assert (inodes["change"], inodes["count"]) == ("inodes", len(APPLICATION) - 2)


def test_a_file_less_is_named(tmp_path: Path) -> None:
    """The member that B does not have."""
    removed, _ = application(tmp_path, *APPLICATION[:2], *APPLICATION[3:])
    assert (removed["change"], removed["name"]) == ("removed", "rootfs/bin/sh")


def test_another_order_is_told_as_such(tmp_path: Path) -> None:
    """Two members that changed places are one move, not a removal and an addition."""
    entries = list(APPLICATION)
    entries[2], entries[3] = entries[3], entries[2]
    order, inodes = application(tmp_path, *entries)
    assert (order["change"], order["moved"], order["name"]) == ("order", 1, "rootfs/bin/sh")
    assert inodes["count"] == 2


def test_a_name_that_comes_twice_is_compared_in_turn(tmp_path: Path) -> None:
    """The second `rootfs/tmp` is held against the second; the slash of the first is no difference of its own."""
    (found,) = application(tmp_path, *replaced(6, cpio.directory(b"rootfs/tmp", 0o700)))
    assert found["attributes"] == {"mode": {"a": "0755", "b": "0700"}}


@pytest.mark.parametrize("less_in_a", [False, True])
def test_a_name_that_comes_once_is_held_against_the_one_of_its_spelling(tmp_path: Path, less_in_a: bool) -> None:
    """One image has `rootfs/run/` and the mount point `rootfs/run`, the other the mount point alone: one line."""
    run = dataclasses.replace(APPLICATION[1], name=b"rootfs/run/")
    more, less = [*APPLICATION[:2], run, *APPLICATION[2:], directory := cpio.directory(b"rootfs/run")], [*APPLICATION]
    less.append(directory)
    a, b = (less, more) if less_in_a else (more, less)
    boot = archive(*BOOT)
    found, _ = compare(write(tmp_path / "a.eif", boot, archive(*a)), write(tmp_path / "b.eif", boot, archive(*b)))
    assert [(entry["change"], entry["name"]) for entry in found if entry["change"] != "inodes"] == [
        ("added" if less_in_a else "removed", "rootfs/run/")
    ]


def test_a_slash_at_the_end_is_a_difference_by_itself(tmp_path: Path) -> None:
    """Where no other member has the name, the two are one."""
    (found,) = application(tmp_path, *replaced(1, dataclasses.replace(APPLICATION[1], name=RESPELLED)))
    assert found["attributes"] == {"name": {"a": APPLICATION[1].name.decode(), "b": RESPELLED.decode()}}


def test_compression_alone_is_told(tmp_path: Path) -> None:
    """The same members in other bytes: where the bytes part, and that no member does."""
    packed = gzip.compress(archive(*APPLICATION), mtime=0)
    found, registers = compare(write(tmp_path / "a.eif"), write(tmp_path / "b.eif", archive(*BOOT), packed))
    assert [(entry["change"], entry["first_difference"]) for entry in found] == [("outside", 0)]
    assert not registers["PCR2"]["same"]


def test_ramdisks_that_are_no_archives_differ_from_a_byte_on(tmp_path: Path) -> None:
    """What cannot be listed is compared as bytes."""
    found, _ = compare(
        write(tmp_path / "a.eif", b"ramdisk0", b"ramdisk1"), write(tmp_path / "b.eif", b"ramdisk0", b"ramdiskX")
    )
    assert [(entry["where"], entry["first_difference"]) for entry in found] == [("ramdisk 1", 7)]


def test_a_ramdisk_that_one_has_is_named(tmp_path: Path) -> None:
    """The third ramdisk moves PCR0 and PCR2."""
    three = write(tmp_path / "b.eif", archive(*BOOT), archive(*APPLICATION), b"third")
    found, registers = compare(write(tmp_path / "a.eif"), three)
    assert [(entry["where"], entry["only"], entry["pcrs"]) for entry in found] == [("ramdisk 2", "b", [0, 2])]
    assert registers["PCR1"]["same"]


def test_the_command_line_is_compared_by_words(tmp_path: Path) -> None:
    """Words that came and went; the registers are 0 and 1."""
    found, registers = compare(write(tmp_path / "a.eif"), write(tmp_path / "b.eif", cmdline=b"console=ttyS0 debug"))
    assert [(e["where"], e["removed"], e["added"], e["pcrs"]) for e in found] == [
        ("cmdline", ["quiet"], ["debug"], [0, 1])
    ]
    assert registers["PCR2"]["same"]


def test_the_kernel_is_named_by_digest_and_version(tmp_path: Path) -> None:
    """Size, digest, version and the first byte that differs."""
    banner = b"\0Linux version 6.12.57-cloud (builder) \0"
    found, _ = compare(write(tmp_path / "a.eif"), write(tmp_path / "b.eif", kernel=b"kernel" + banner))
    (kernel,) = found
    assert (kernel["first_difference"], kernel["a"]["version"], kernel["b"]["version"]) == (6, None, "6.12.57-cloud")


def test_a_bzimage_says_its_version() -> None:
    """The set-up header points at the text, 0x200 short."""
    data = bytearray(0x400)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    data[0x300:0x310] = b"5.10.0-1 (x@y) \0"
    assert kernel_version(bytes(data)) == "5.10.0-1"
    data[0x20E:0x210] = b"\xff\xff"
    assert kernel_version(bytes(data)) is None


def test_metadata_is_compared_by_key_and_moves_nothing(tmp_path: Path) -> None:
    """Paths of what changed; every register is the same, and the images still differ."""
    other = dataclasses.replace(METADATA, build={"BuildTime": "2027"}, docker_info={"Id": "sha256:0", "Tags": ["x"]})
    found, registers = compare(write(tmp_path / "a.eif"), write(tmp_path / "b.eif", metadata=other.pack()))
    assert {entry["path"]: (entry.get("a"), entry.get("b")) for entry in found} == {
        "BuildMetadata.BuildTime": ("2026", "2027"),
        "DockerInfo.Tags": (None, ["x"]),
    }
    assert all(entry["pcrs"] == [] for entry in found)
    assert all(register["same"] for register in registers.values())


def test_the_same_metadata_in_other_bytes_is_a_difference(tmp_path: Path) -> None:
    """White space alone is told as such."""
    spaced = json.dumps(json.loads(METADATA.pack())).encode()
    found, _ = compare(write(tmp_path / "a.eif"), write(tmp_path / "b.eif", metadata=spaced))
    assert "the same values" in found[0]["what"]


def test_flags_and_the_order_of_sections_are_told(tmp_path: Path) -> None:
    """The architecture bit, and a command line that precedes the kernel."""
    found, _ = compare(write(tmp_path / "a.eif"), write(tmp_path / "b.eif", flags=1, order=(1, 0, 2)))
    assert [entry["where"] for entry in found] == ["header", "layout"]
    assert "aarch64" in found[0]["what"]


def test_bytes_that_cross_a_border_are_told(tmp_path: Path) -> None:
    """PCR0 and PCR1 do not tell kernel and command line apart; the comparison says so."""
    found, registers = compare(
        write(tmp_path / "a.eif", kernel=b"kernel", cmdline=b"x y"),
        write(tmp_path / "b.eif", kernel=b"kernelx", cmdline=b" y"),
    )
    assert registers["PCR0"]["same"]
    assert [entry["unmoved"] for entry in found if "unmoved" in entry] == [0, 1]


def test_signers_are_compared(tmp_path: Path, make_pem: MakePem) -> None:
    """Unsigned against signed, one signer against another, and the same signer's second signature."""
    plain, one, again, other = (write(tmp_path / f"{name}.eif") for name in ("plain", "one", "again", "other"))
    certificate, pem = make_pem(ec.SECP384R1())
    key = load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signer = Signer(certificate, key.public_key(), lambda data, digest: key.sign(data, ec.ECDSA(digest)))
    sign_eif(one, signer)
    sign_eif(again, signer)  # with another random number
    sign_eif(other, Signer.from_pem(*make_pem(ec.SECP256R1())))
    (found,), registers = compare(plain, one)
    assert (found["only"], found["pcrs"]) == ("b", [8])
    assert registers["PCR8"]["a"] is None
    found_again, registers = compare(one, again)
    assert registers["PCR8"]["same"]
    assert [entry["field"] for entry in found_again] == ["signature"]
    found_other, registers = compare(one, other)
    assert not registers["PCR8"]["same"]
    assert [(entry["field"], entry["pcrs"]) for entry in found_other] == [("certificate", [8]), ("signature", [])]


def test_bytes_that_belong_to_nothing_are_a_difference(tmp_path: Path) -> None:
    """Files that differ only after the last section are not the same."""
    a, b = write(tmp_path / "a.eif"), write(tmp_path / "b.eif")
    a.write_bytes(a.read_bytes() + b"x")
    b.write_bytes(b.read_bytes() + b"y")
    (found,), _ = compare(a, b)
    assert found["first_difference"] == a.stat().st_size - 1


@pytest.mark.parametrize("content", [None, b"", b"not an image" * 100])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    """The error carries the path of the file that is wrong."""
    bad = tmp_path / "bad.eif"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.eif"):
        compare(write(tmp_path / "a.eif"), bad)


def test_a_ramdisk_with_too_many_members_is_refused() -> None:
    """What must be held in memory has a limit."""
    data = [archive(*APPLICATION)]
    with pytest.raises(ImageFormatError, match="more than 3 members"):
        list(compare_ramdisks("ramdisk 1", (0, 2), items(data), items(data), most=3))


def test_the_first_difference_is_found_in_any_chunks() -> None:
    """Streams that come in different chunks differ where their bytes do."""
    rng = random.Random(3)  # noqa: S311 - the same cases every time
    for _ in range(200):
        data = rng.randbytes(rng.randrange(40))
        other = bytearray(data)
        expected = None
        if data and rng.random() < 0.7:
            expected = rng.randrange(len(data))
            other[expected] ^= 1
        sizes = rng.randrange(1, 9), rng.randrange(1, 9)
        streams = [
            iter([whole[at : at + size] for at in range(0, len(whole), size)])
            for whole, size in zip((data, bytes(other)), sizes, strict=True)
        ]
        assert first_difference(*streams) == expected
    assert first_difference(iter([b"ab"]), iter([b"a"])) == 1
