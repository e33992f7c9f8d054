"""pkcs11: URIs, after RFC 7512."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.errors import UsageError
from alcove.pkcs11 import Pkcs11Uri

WORDS = st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text)


def test_every_attribute_is_read() -> None:
    """What p11tool prints, with a module and a PIN file behind it."""
    text = (
        "pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=69;token=my%3btoken;id=%01%ff;object=k;"
        "type=private;slot-id=327?module-path=/usr/lib/m.so&pin-source=file:/etc/pin"
    )
    assert Pkcs11Uri.parse(text) == Pkcs11Uri(
        token="my;token", manufacturer="SoftHSM project", serial="69", model="SoftHSM v2", object="k", type="private",
        id=b"\x01\xff", slot_id=327, module_path="/usr/lib/m.so", pin_source="/etc/pin",
    )  # fmt: skip


def test_the_rfcs_own_characters_need_no_escape() -> None:
    """Unreserved and pk11-res-avail (RFC 7512 §2.3); "&" in the path, "/" and "?" behind it."""
    free = "-._~:[]@!$'()*+,="
    assert Pkcs11Uri.parse(f"pkcs11:token={free}&").token == f"{free}&"
    assert Pkcs11Uri.parse(f"pkcs11:?module-path=/{free}/?|").module_path == f"/{free}/?|"
    with pytest.raises(UsageError):
        Pkcs11Uri.parse("pkcs11:token=a/b")


def test_nothing_is_a_uri_too() -> None:
    """`pkcs11:` names any key of any token."""
    assert Pkcs11Uri.parse("pkcs11:") == Pkcs11Uri()


@pytest.mark.parametrize("source", ["file:/etc/pin", "file:///etc/pin", "/etc/pin", "FILE:/etc/pin"])
def test_a_pin_source_is_a_file(source: str) -> None:
    """As a path, and in both spellings of a file: URI."""
    assert Pkcs11Uri.parse(f"pkcs11:?pin-source={source}").pin_source == "/etc/pin"


def test_a_pin_in_argv_is_refused_with_advice() -> None:
    """It would show in the process list; the message does not repeat it."""
    with pytest.raises(UsageError, match="everyone who lists processes") as caught:
        Pkcs11Uri.parse("pkcs11:token=t?pin-value=31415")
    assert "pin-source" in str(caught.value.hint)
    assert "31415" not in caught.value.message + str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pkcs:token=t", "begin"),
        ("pkcs11:tokn=t", "not known"),
        ("pkcs11:token", "not known"),
        ("pkcs11:token=a;token=b", "twice"),
        ("pkcs11:token=a b", "%XX"),
        ("pkcs11:token=%4", "%XX"),
        ("pkcs11:token=%zz", "%XX"),
        ("pkcs11:token=%ff", "UTF-8"),
        ("pkcs11:type=secret", "type"),
        ("pkcs11:slot-id=x", "slot-id"),
        ("pkcs11:id=", "id"),
        ("pkcs11:token=t;", "not known"),
        ("pkcs11:?pin-source=|/bin/cat", "program"),
        ("pkcs11:?pin-source=https://a/b", "not a file"),
        ("pkcs11:?pin-source=file://host/pin", "not a file"),
        ("pkcs11:?module-path=", "empty"),
        ("pkcs11:?module-name=a/b", "not a path"),
        ("pkcs11:token=" + "a" * 5000, "longer"),
    ],
)
def test_nonsense_is_refused(text: str, why: str) -> None:
    """One fault each; the caller's, so a UsageError."""
    with pytest.raises(UsageError, match=why):
        Pkcs11Uri.parse(text)


@given(
    st.builds(
        Pkcs11Uri,
        token=WORDS | st.none(),
        object=WORDS | st.none(),
        id=st.binary(min_size=1, max_size=20) | st.none(),
        slot_id=st.integers(0, 2**63 - 1) | st.none(),
        module_path=WORDS.map("/{}".format) | st.none(),
    )
)
def test_writing_and_reading_is_the_identity(uri: Pkcs11Uri) -> None:
    """Whatever stands in the values."""
    assert Pkcs11Uri.parse(str(uri)) == uri


@given(st.text(max_size=100))
def test_any_text_is_a_uri_or_a_usage_error(text: str) -> None:
    """Nothing else comes out."""
    for prefix in ("", "pkcs11:", "pkcs11:token=t?", "pkcs11:id="):
        with contextlib.suppress(UsageError):
            Pkcs11Uri.parse(prefix + text)
