"""Layers that are compressed with gzip, in every form that RFC 1952 allows."""

from __future__ import annotations

import contextlib
import gzip
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.image.tarballs import gzip_member, layer

from alcove.errors import ImageFormatError
from alcove.image.sources import oci, unpack
from alcove.image.sources.tree import walk

CONTENT = random.Random(1).randbytes(1000) * 300  # noqa: S311


@pytest.fixture
def content(make_layout: Callable[..., Path], tmp_path: Path) -> Callable[[Callable[[bytes], bytes]], bytes]:
    """What the one file of a layer holds that was compressed in some way."""

    def read(compress: Callable[[bytes], bytes]) -> bytes:
        layout = make_layout(layer(("f", {"data": CONTENT})), compress=compress)
        flattened = oci.flatten(oci.load_layout(layout), tmp_path)
        node = dict(walk(flattened.root))[b"f"]
        assert node.data is not None
        return b"".join(flattened.read(node.data))

    return read


Content = Callable[[Callable[[bytes], bytes]], bytes]


@pytest.mark.parametrize("flags", range(0, 32, 2))
def test_optional_fields_of_the_header_are_passed_over(content: Content, flags: int) -> None:
    """Extra field, name, comment and a checksum of the header, each and all of them."""
    assert content(lambda raw: gzip_member(raw, flags)) == CONTENT


def test_thousands_of_members_are_one_layer(content: Content) -> None:
    """As estargz and pigz write them; headers of any kind lie across the pieces in which the blob is read."""
    rng = random.Random(2)  # noqa: S311

    def compress(raw: bytes) -> bytes:
        out = b""
        while raw:
            size = rng.randint(0, 200)
            out += gzip_member(raw[:size], rng.randrange(0, 32, 2), b"t" * rng.randint(1, 300))
            raw = raw[size:]
        assert len(out) > 4 * unpack._INPUT
        return out

    assert content(compress) == CONTENT


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-8] + bytes(4) + packed[-4:],
        lambda packed: packed[:-4] + bytes(4),
        lambda packed: packed[:-1],
        lambda packed: packed[:5],
        lambda packed: packed + b"x",
        lambda packed: packed + bytes(512),
        lambda packed: packed + gzip_member(b"more")[:-1],
        lambda packed: packed[:2] + b"\7" + packed[3:],
    ],
    ids=["checksum", "length", "cut", "cut in the header", "a byte more", "zeros more", "cut later", "method"],
)
def test_a_broken_stream_is_named(content: Content, damage: Callable[[bytes], bytes]) -> None:
    """Whether the blob's digest is right or not, what it unpacks to is not used."""
    with pytest.raises(ImageFormatError, match="compression is broken"):
        content(lambda raw: damage(gzip.compress(raw)))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), value=st.integers(1, 255))
def test_a_changed_byte_is_an_error_or_changes_nothing(content: Content, at: int, value: int) -> None:
    """Nothing but ImageFormatError comes out, and never another content."""

    def changed(raw: bytes) -> bytes:
        packed = bytearray(gzip_member(raw, 31, b"name"))
        packed[at] ^= value
        return bytes(packed)

    with contextlib.suppress(ImageFormatError):
        assert content(changed) == CONTENT
