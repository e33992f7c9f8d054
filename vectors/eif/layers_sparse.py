"""Vectors of sparse files in layers (GNU tar manual, "Storing Sparse Files"), in each form that there is."""

from __future__ import annotations

import tarfile

from vectors.collection import Collection
from vectors.eif.layers import Item, Made, extended, flat, patched, record, refused, tar

vector = Collection("layers")

STORED = b"a" * 512 + b"def"  # pieces are whole blocks but for the last, as GNU tar wants them
MAP = ((512, 512), (1536, 3), (1540, 0))  # the last says where the file ends, for readers that look there
HOLED = Item("f", bytes(512) + b"a" * 512 + bytes(512) + b"def" + b"\0")
FORM_1 = {"major": "1", "minor": "0", "name": "f", "realsize": "1540"}


def sparse_records(**values: str) -> bytes:
    """Records whose keys begin with GNU.sparse."""
    return b"".join(record(f"GNU.sparse.{key}", value) for key, value in values.items())


def sparse_1(lines: bytes) -> bytes:
    """A sparse file in PAX's form 1.0, with this map before its data."""
    content = lines + bytes(-len(lines) % 512) + STORED
    return extended(b"x", sparse_records(**FORM_1), Item("GNUSparseFile.1/f", content))


def sparse_0_1(size: int, *pieces: tuple[int, int], stored: bytes = STORED) -> bytes:
    """A sparse file in PAX's form 0.1, with this size and this map."""
    numbers = ",".join(f"{offset},{length}" for offset, length in pieces)
    records = sparse_records(size=str(size), numblocks=str(len(pieces)), map=numbers, name="f")
    return extended(b"x", records, Item("GNUSparseFile.1/f", stored))


def sparse_old(size: int, stored: bytes, *pieces: tuple[int, int]) -> bytes:
    """A sparse file in GNU's old form: four pairs in the header, 21 in each block after it."""
    pairs = [b"%011o\0%011o\0" % pair for pair in pieces]
    head, more = b"".join(pairs[:4]), b"".join(pairs[4:])
    layer = patched(tar(Item("f", stored), form=tarfile.GNU_FORMAT), 156, b"S")
    layer = patched(layer, 386, head + bytes(96 - len(head)) + (b"\1" if more else b"\0") + b"%011o\0" % size)
    return layer[:512] + more + bytes(-len(more) % 512) + layer[512:]


@vector
def sparse_gnu() -> Made:
    """A sparse file in GNU's old form: the map is in the header, holes are zeros."""
    return flat([sparse_old(1540, STORED, *MAP)], HOLED)


@vector
def sparse_gnu_extended() -> Made:
    """The same with more pieces than the header has room for: a block after it goes on."""
    pieces = [(1024 * index, 512) for index in range(5)]
    content = b"".join(b"%d" % index * 512 + bytes(512) for index in range(5))
    stored = b"".join(b"%d" % index * 512 for index in range(5))
    return flat([sparse_old(5120, stored, *pieces, (5120, 0))], Item("f", content))


@vector
def sparse_pax_0_0() -> Made:
    """A sparse file in PAX's form 0.0: a record for each number, the same two keys again and again."""
    pairs = (sparse_records(offset=str(offset), numbytes=str(length)) for offset, length in MAP)
    records = sparse_records(size="1540", numblocks=str(len(MAP))) + b"".join(pairs)
    return flat([extended(b"x", records, Item("f", STORED))], HOLED)


@vector
def sparse_pax_0_1() -> Made:
    """A sparse file in PAX's form 0.1: the map is one record."""
    return flat([sparse_0_1(1540, *MAP)], HOLED)


@vector
def sparse_pax_1_0() -> Made:
    """A sparse file in PAX's form 1.0: the map comes before the data."""
    return flat([sparse_1(b"3\n512\n512\n1536\n3\n1540\n0\n")], HOLED)


@vector
def sparse_hole_alone() -> Made:
    """A sparse file that is all hole."""
    return flat([sparse_0_1(600, (600, 0), stored=b"")], Item("f", bytes(600)))


@vector
def sparse_overlap() -> Made:
    """A sparse file whose pieces lie on each other."""
    return refused(sparse_1(b"2\n512\n512\n600\n3\n"), "tar sparse", 1024)


@vector
def sparse_count() -> Made:
    """A sparse file that claims a billion pieces."""
    return refused(sparse_1(b"1000000000\n"), "tar sparse", 1024)


@vector
def sparse_map_without_end() -> Made:
    """A map of one number without a line feed."""
    return refused(sparse_1(b"1" * 512), "tar sparse", 1024)


@vector
def sparse_stored_otherwise() -> Made:
    """The pieces are not as many bytes as the archive holds."""
    return refused(sparse_0_1(1540, (512, 512), (1536, 4)), "tar sparse", 1024)


@vector
def sparse_past_its_size() -> Made:
    """A piece that ends after the file does."""
    return refused(sparse_0_1(1538, *MAP[:2]), "tar sparse", 1024)
