"""How much of a container image is taken before it counts as an attack, and how a user says otherwise.

    ALCOVE_MAX_LAYER   bytes of a layer once it is unpacked, holes of sparse files included; 64G when not set
    ALCOVE_MAX_TREE    bytes of memory for names and attributes, at some 500 a file; 1G when not set

A size is a number of bytes, or one with K, M, G or T, which are powers of 1024.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from alcove.errors import ImageFormatError, UsageError

MAX_LAYER: Final = 64 << 30  # ours
MAX_TREE: Final = 1 << 30  # ours: about two million files
ENTRY: Final = 500  # bytes of memory, measured: a node, its name in a directory, its offsets
PIECE: Final = 120  # bytes of memory: a pair of numbers

NO_ROOM: Final = "set NITRO_CLI_ARTIFACTS or TMPDIR to a directory with room for the unpacked image"

_SIZE: Final = re.compile(r"([0-9]{1,15})([KMGT]?)")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Limits:
    """What is taken: bytes of an unpacked layer, and bytes of memory for the tree."""

    layer: int = MAX_LAYER
    tree: int = MAX_TREE

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], layer: int | None = None) -> Limits:
        """The limits that a user set; `layer` goes before the variable.

        Raises:
            UsageError: E03 for a variable that is no size.
        """
        if layer is None:
            layer = _variable(environment, "ALCOVE_MAX_LAYER", MAX_LAYER)
        return cls(layer, _variable(environment, "ALCOVE_MAX_TREE", MAX_TREE))

    def too_large(self) -> ImageFormatError:
        """The error for a layer beyond the limit."""
        hint = "when the image is meant to be that large, pass --max-layer 200G, or set ALCOVE_MAX_LAYER"
        return ImageFormatError(f"unpacked, it is larger than {self.layer} bytes", field="layer", hint=hint)


def _variable(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name)
    return parse_size(name, text) if text else default


def parse_size(name: str, text: str) -> int:
    """Bytes in a text such as `64G`, the value of `name`.

    Raises:
        UsageError: E03 when it is no size.
    """
    match = _SIZE.fullmatch(text.upper())
    if match is None or int(match[1]) == 0:
        hint = "a number of bytes, or one with K, M, G or T"
        raise UsageError(f"`{text}` is not a valid value for `{name}`", hint=hint, code="E03")
    return int(match[1]) * _UNITS[match[2]]


class Budget:
    """Memory for a tree, spent as its nodes are made; `left` is given back with what was made and dropped again."""

    def __init__(self, limits: Limits) -> None:
        self._limit = self.left = limits.tree

    def spend(self, names: int = 0, pieces: int = 0) -> None:
        """Pay for a node.

        Args:
            names: Bytes of its path and of its target.
            pieces: Pairs of its map, for a sparse file.

        Raises:
            ImageFormatError: When there is nothing left.
        """
        self.left -= ENTRY + names + PIECE * pieces
        if self.left < 0:
            hint = "when the image is meant to hold so many files, set ALCOVE_MAX_TREE, to 4G for instance"
            raise ImageFormatError(
                f"its names and attributes need more than {self._limit} bytes of memory", field="layers", hint=hint
            )
