"""Collects the generators of vectors: a function that makes one vector, named and explained by itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vectors.vectorfile import Vector

Fields = dict[str, object]  # a list stands for a key that is repeated
Maker = Callable[[], tuple[bytes, Fields]]


class Collection:
    """Generators of one kind of vector; a decorator. Function name and docstring become name and comment."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._makers: dict[str, Maker] = {}

    def __call__(self, maker: Maker) -> Maker:
        """Add a generator."""
        self._makers[maker.__name__.strip("_").replace("_", "-")] = maker
        return maker

    def vectors(self) -> Iterator[Vector]:
        """The vectors of every generator, in the order of the file."""
        for name, maker in self._makers.items():
            payload, fields = maker()
            comment = " ".join((maker.__doc__ or "").split())
            head = [("kind", self.kind), ("expect", str(fields.pop("expect"))), ("comment", comment)]
            yield Vector(f"{self.kind}/{name}", (*head, *_flat(fields)), payload)


def _flat(fields: Fields) -> Iterator[tuple[str, str]]:
    for key, value in fields.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            yield from ((key.replace("_", "-"), str(item)) for item in values)


def texts(collections: Iterable[Collection]) -> dict[str, str]:
    """File name and text of every vector."""
    return {f"{vector.name}.txt": vector.format() for each in collections for vector in each.vectors()}


def differences(directory: Path, collections: Iterable[Collection]) -> list[str]:
    """The files below a directory that are not the generators' output: changed, missing or left over."""
    made = texts(collections)
    there = {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*.txt")}
    return sorted(name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


def main(directory: Path, collections: list[Collection]) -> None:
    """Write the vectors, or with --check only say which files differ."""
    parser = argparse.ArgumentParser(description="Write the vectors that the generators make.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when a file differs")
    check = parser.parse_args().check
    different = differences(directory, collections)
    made = texts(collections)
    for name in different:
        print(f"{'differs' if check else 'written' if name in made else 'removed'}: {name}")
        path = directory / name
        if not check and name in made:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[name])
        elif not check:
            path.unlink()
    print(f"{len(made)} vectors, {len(different)} files {'differ' if check else 'changed'}")
    sys.exit(1 if check and different else 0)
