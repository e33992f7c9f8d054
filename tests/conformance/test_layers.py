"""Container layers: the tree that they leave, as the vectors say."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from tests.conformance.corpus import check_fault, layout, vectors
from vectors.vectorfile import Vector

from alcove.errors import ImageFormatError
from alcove.image.sources import oci
from alcove.image.sources.tree import walk


def flattened(vector: Vector, directory: Path) -> oci.Flattened:
    """The vector's layers on each other."""
    layers, at = [], 0
    for size in map(int, vector.get("layers").split()):
        layers.append(vector.payload[at : at + size])
        at += size
    assert at == len(vector.payload)
    (directory / "spool").mkdir()
    return oci.flatten(oci.load_layout(layout(directory / "layout", layers)), directory / "spool")


def lines(flat: oci.Flattened) -> list[str]:
    """The tree as the vectors write it."""
    first: dict[int, str] = {}
    made = []
    for path, node in walk(flat.root):
        name = path.decode()
        text = f"{node.mode:06o} {node.uid} {node.gid} {node.mtime} {name}"
        if first.setdefault(id(node), name) != name:
            text += f" => {first[id(node)]}"
        elif node.data is not None:
            text += f" = {b''.join(flat.read(node.data)).hex()}"
        elif stat.S_ISLNK(node.mode):
            text += f" -> {node.target.decode()}"
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            text += f" {node.rdev[0]}:{node.rdev[1]}"
        made.append(text)
    return made


@vectors("layers")
def test_layers(vector: Vector, tmp_path: Path) -> None:
    """The tree's every name, with its attributes and content; or the fault, where it is."""
    if vector.get("expect") == "refused":
        with pytest.raises(ImageFormatError) as caught:
            flattened(vector, tmp_path)
        check_fault(vector, caught.value)
        return
    assert lines(flattened(vector, tmp_path)) == vector.all("entry")
