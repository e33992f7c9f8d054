"""Names of keys that take turns."""

from __future__ import annotations

from alcove.apps.acm.rotation import Rotation
from alcove.apps.acm.sources import Material


def material(secret: str, certificate: str = "c", count: int = 1) -> Material:
    keys = [{"sealed_key": secret, "id": n, "label": f"k{n}", "cert_pem": certificate} for n in range(1, count + 1)]
    return Material(tuple(keys), certificate)


def names(keys: tuple[dict[str, object], ...]) -> list[tuple[object, ...]]:
    return [(key["sealed_key"], key["id"], key["label"], key["cert_pem"]) for key in keys]


def test_a_new_key_has_another_name_and_the_old_one_keeps_its() -> None:
    """Turn by turn; of what is old there is no certificate."""
    first, second, third = material("one"), material("two"), material("three")
    begin = Rotation()
    assert names(begin.alone(first)) == [("one", 1, "k1", "c")]
    then = begin.after(first, second)
    assert names(then.beside(first, second)) == [("two", 2, "k1-2", "c"), ("one", 1, "k1", None)]
    assert names(then.alone(second)) == [("two", 2, "k1-2", "c")]
    last = then.after(second, third)
    assert last == begin
    assert names(last.beside(second, third)) == [("three", 1, "k1", "c"), ("two", 2, "k1-2", None)]


def test_another_certificate_of_the_same_key_changes_no_name() -> None:
    """Nothing is beside it."""
    old, new = material("one"), material("one", "d")
    assert Rotation(2).after(old, new) == Rotation(2)
    assert names(Rotation(2).beside(old, new)) == [("one", 2, "k1-2", "d")]


def test_keys_that_have_names_of_their_own_keep_them() -> None:
    """A FileDb of two keys, before or after."""
    one, two = material("one"), material("two", count=2)
    for old, new in ((one, two), (two, one), (two, material("x", count=2))):
        assert Rotation().after(old, new) == Rotation()
        assert Rotation().beside(old, new) == new.keys
    other = Material(({"sealed_key": "s", "id": 7, "label": "k", "cert_pem": None},), "")
    assert Rotation(2).alone(other) == other.keys
