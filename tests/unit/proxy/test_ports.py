from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.errors import UsageError
from alcove.proxy.ports import MAX_TCP, MAX_VSOCK, Mapping, parse, parse_place, parse_port


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("8443", Mapping("", 8443, 8443)),
        ("8443:443", Mapping("", 8443, 443)),
        ("0.0.0.0:8443:443", Mapping("0.0.0.0", 8443, 443)),
        ("[::1]:8443:443", Mapping("::1", 8443, 443)),
        ("1:4294967294", Mapping("", 1, MAX_VSOCK)),
    ],
)
def test_a_mapping_says_where_to_listen_and_where_that_leads(text: str, mapping: Mapping) -> None:
    """An address is one of this machine, and may be left out, as may the second port."""
    assert parse(text, max_port=MAX_TCP, max_target=MAX_VSOCK) == mapping


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1:2:3:4",
        "0:1",
        "1:0",
        "65536",
        "1:4294967295",
        "host:1:2",
        "[::g]:1:2",
        "1.2.3:4:5",
        "-1",
        "1:",
        "１:２",
    ],
)
def test_what_is_no_mapping_is_refused(text: str) -> None:
    """Ports are within their range, addresses are IP addresses, and nothing is guessed."""
    with pytest.raises(UsageError):
        parse(text, max_port=MAX_TCP, max_target=MAX_VSOCK)


def test_port_0_stands_for_a_free_one_where_that_is_allowed() -> None:
    """For TCP listeners only."""
    assert parse("0:443", max_port=MAX_TCP, max_target=MAX_VSOCK, any_port=True) == Mapping("", 0, 443)


@given(st.text(alphabet="0123456789:.[]ab-", max_size=30))
def test_any_text_is_a_mapping_or_a_usage_error(text: str) -> None:
    """Any text → a mapping, or UsageError, nothing else."""
    with contextlib.suppress(UsageError):
        parse(text, max_port=MAX_TCP, max_target=MAX_VSOCK)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("9100", Mapping("", 9100, 9100)),
        ("127.0.0.1:9100", Mapping("127.0.0.1", 9100, 9100)),
        ("[::]:9100", Mapping("::", 9100, 9100)),
    ],
)
def test_a_place_to_listen_is_a_port_with_or_without_an_address(text: str, place: Mapping) -> None:
    """As `--metrics` says it."""
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "x", "0", "65536", "9100:9101", "1.2.3:9100", "host:9100", "[::g]:9100", "9100:"])
def test_a_place_that_cannot_be_is_refused(text: str) -> None:
    """A second port is not passed over."""
    with pytest.raises(UsageError, match=r"is not \[ADDRESS:\]PORT|IP address"):
        parse_place(text)


@pytest.mark.parametrize("text", ["", "0", "x", "5:6", "65536", "1.2.3.4:5", "-1", "５"])
def test_a_port_is_a_number_in_its_range(text: str) -> None:
    """And nothing else: what would be passed over is refused."""
    assert parse_port("65535", MAX_TCP) == MAX_TCP
    with pytest.raises(UsageError, match="is not a port, a number from 1 to 65535"):
        parse_port(text, MAX_TCP)
