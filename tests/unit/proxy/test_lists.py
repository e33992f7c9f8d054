"""A list that cannot be read is told in one line, its path once."""

from __future__ import annotations

from pathlib import Path

import pytest

from alcove.errors import InputError
from alcove.proxy import lists


def test_a_list_is_read_as_it_is(tmp_path: Path) -> None:
    """Whatever letters it has."""
    (tmp_path / "list").write_text("allow bücher.example:443\n", encoding="utf-8")
    assert lists.read(tmp_path / "list") == "allow bücher.example:443\n"


def test_what_is_no_list_is_told_in_the_systems_words(tmp_path: Path) -> None:
    """A missing file, a directory, bytes that are no text."""
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, reason in (("none", "No such file or directory"), ("", "Is a directory"), ("bytes", "it is not UTF-8")):
        path = tmp_path / name
        with pytest.raises(InputError) as caught:
            lists.read(path, "a hint")
        assert caught.value.message == f"{path}: the list cannot be read: {reason}"
        assert caught.value.hint == "a hint"
