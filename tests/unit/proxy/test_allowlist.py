from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.errors import InputError
from alcove.proxy.allowlist import Entry, Route, allows, parse

HTTPS = ((443, 443),)
ENTRIES = (Entry("kms.example.org", HTTPS), Entry("other.example.org", HTTPS), Entry("192.0.2.9", ((8443, 8443),)))
NAMES = {"kms.example.org": ["192.0.2.1"], "other.example.org": ["192.0.2.2", "192.0.2.3"], "192.0.2.9": ["192.0.2.9"]}
NAMES |= {"alias.example.org": ["192.0.2.3", "192.0.2.7"], "late.example.org": ["192.0.2.7", "192.0.2.3"]}


def resolve(host: str) -> list[str]:
    return NAMES.get(host, [])


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("kms.example.org", 443, True),
        ("kms.example.org", 444, False),
        ("192.0.2.3", 443, False),
        ("192.0.2.9", 8443, True),
        ("alias.example.org", 443, True),
        ("late.example.org", 443, False),
        ("unknown.example.org", 443, False),
    ],
)
def test_a_destination_matches_by_text_or_first_address(host: str, port: int, allowed: bool) -> None:
    """Ports equal, and the same text or the remote's first address among the entry's (cli.md §6)."""
    assert allows(ENTRIES, host, port, resolve) is allowed


def test_an_address_matches_a_name_that_has_it() -> None:
    """An IP address resolves to itself."""
    assert allows(ENTRIES, "192.0.2.3", 443, lambda host: NAMES.get(host, [host]))


def test_a_listed_name_needs_no_resolver() -> None:
    """A dead resolver at start does not keep a listed name out."""
    assert allows(ENTRIES, "kms.example.org", 443, lambda host: [])


def test_awss_file_is_read() -> None:
    """Both YAML styles, as AWS ships them and as people write them."""
    text = "# comment\nallowlist:\n- {address: kms.example.org, port: 443}\n- address: 192.0.2.9\n  port: 8443\n"
    assert parse(text).entries == (ENTRIES[0], ENTRIES[2])


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "allowlist: 3", "allowlist:", "allowlist: [x]", "allowlist: [{address: a}]", "a: [",
        "a: !!python/name:os",
        "allowlist: [{address: a, port: '443'}]", "allowlist: [{address: a, port: 0}]",
        "allowlist: [{address: 7, port: 1}]",
        "allowlist: [{address: a, port: true}]",
        "allowlist: []\nlisteners: 3", "allowlist: []\nlisteners: [{port: 1}]", "allowlist: []\nlistener: []",
        "allowlist: []\nlisteners: [{port: 1-2, address: a, remote_port: 1-3}]",
        "allowlist: []\nlisteners: [{port: 1-9999999, address: a, remote_port: 1-9999999}]",
        "allowlist: []\nlisteners: [{port: 1, address: a, remote_port: 0}]",
        "allowlist: []\nlisteners: [{port: 1-2, address: a, remote_port: 1-2}, {port: 2, address: b, remote_port: 1}]",
        "allowlist: [{address: '**x', port: 443}]", "allowlist: [{address: a, port: '8-7'}]",
    ],
)  # fmt: skip
def test_another_shape_is_an_input_error(text: str) -> None:
    """Nothing is guessed: a list that cannot be read allows nothing."""
    with pytest.raises(InputError):
        parse(text)


MORE = """
allowlist:
- {address: "**.example.org", port: "443,8000-8100"}
- {address: 192.0.2.0/24, port: 5432}
listeners:
- {port: 8000, address: kms.example.org, remote_port: 443}
- {port: 9000-9002, address: db.example.org, remote_port: 5000-5002}
"""


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("a.b.example.org", 8050, True),
        ("A.Example.Org.", 443, True),
        ("example.org", 443, False),
        ("a.example.org", 444, False),
        ("192.0.2.77", 5432, True),
        ("alias.example.com", 5432, True),
        ("far.example.com", 5432, False),
    ],
)
def test_wildcards_networks_and_ranges(host: str, port: int, allowed: bool) -> None:
    """Ours: as in the egress proxy's rules; a name matches a network by its first address."""
    names = {"alias.example.com": ["192.0.2.3", "198.51.100.1"], "far.example.com": ["198.51.100.1", "192.0.2.3"]}
    assert allows(parse(MORE).entries, host, port, lambda name: names.get(name, [])) is allowed


def test_listeners_are_routes() -> None:
    """Ours: a range leads to as many ports, one each."""
    ranged = tuple(Route(9000 + n, "db.example.org", 5000 + n) for n in range(3))
    assert parse(MORE).routes == (Route(8000, "kms.example.org", 443), *ranged)


def test_what_is_no_yaml_is_told_with_its_line() -> None:
    """In one line, wherever the mistake is."""
    with pytest.raises(InputError, match=r"^the allow list is not YAML: .* line 4, ") as caught:
        parse("allowlist:\n- {address: a, port: 1}\n- {address: [\n")
    assert "\n" not in caught.value.message


@given(st.text(max_size=80))
def test_any_text_is_entries_or_an_input_error(text: str) -> None:
    """Any text → entries, or InputError, nothing else."""
    with contextlib.suppress(InputError):
        parse(text)
