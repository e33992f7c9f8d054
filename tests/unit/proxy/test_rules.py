from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.errors import InputError
from alcove.proxy.rules import RefusedError, Rules, destination, parse

LIST = """
# what the application needs
allow kms.*.amazonaws.com:443
allow **.example.org:443,8000-8100   # and below
deny  evil.example.org
allow 192.0.2.0/24:443
allow [2001:db8::/32]:443
allow 127.0.0.1:8443
allow 0.0.0.0/0:80
deny  198.51.100.0/24
allow any.test:*
"""
RULES = parse(LIST, "the parent's list")


def asked(rules: Rules, host: str, port: int) -> str:
    """Empty when it is allowed, else why it is refused."""
    try:
        rules.check(destination(host, port))
    except RefusedError as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("kms.eu-west-1.amazonaws.com", 443),
        ("KMS.EU-WEST-1.AMAZONAWS.COM.", 443),
        ("a.example.org", 443),
        ("b.a.example.org", 8050),
        ("192.0.2.9", 443),
        ("::ffff:192.0.2.9", 443),
        ("[2001:db8::7]", 443),
        ("2001:DB8:0::7", 443),
        ("127.0.0.1", 8443),
        ("203.0.113.1", 80),
        ("any.test", 1),
    ],
)
def test_what_a_rule_allows(host: str, port: int) -> None:
    """Labels, ranges and networks; case, a dot at the end and the spelling of an address make no difference."""
    assert asked(RULES, host, port) == ""


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("kms.amazonaws.com", 443, "no rule of the parent's list"),
        ("kms.a.b.amazonaws.com", 443, "no rule of the parent's list"),
        ("kms.eu-west-1.amazonaws.com", 444, "no rule"),
        ("example.org", 443, "no rule"),
        ("badexample.org", 443, "no rule"),
        ("evil.example.org", 443, "the parent's list says `deny evil.example.org` in line 5"),
        ("evil.example.org.", 443, "`deny evil.example.org`"),
        ("198.51.100.7", 80, "`deny 198.51.100.0/24` in line 10"),
        ("127.0.0.2", 8443, "no rule"),
        ("127.0.0.1", 80, "no rule of the parent's list allows just such addresses"),
        ("::ffff:127.0.0.1", 80, "just such addresses"),
        ("169.254.169.254", 80, "just such addresses"),
    ],
)
def test_a_refusal_names_its_rule(host: str, port: int, reason: str) -> None:
    """Which line refuses, or that none allows; a wide network never opens the parent's own addresses."""
    message = asked(RULES, host, port)
    assert reason in message
    assert str(port) in message


@pytest.mark.parametrize(
    "host",
    ["", ".", "a..b", "0x7f.1", "127.1", "2130706433", "127.0.0.01", "1.2.3.4.5", "a b", "a/b", "-a.org", "fe80::1%lo",
     "x" * 64, "a." * 127 + "org", "ａ.org", "a\n.org", "*.org", "a.0x1"],
)  # fmt: skip
def test_what_only_looks_like_a_host_is_refused(host: str) -> None:
    """Resolvers read `127.1` and `0x7f000001` as addresses: no rule gets to see them."""
    with pytest.raises(InputError):
        destination(host, 443)


def test_the_addresses_of_a_name_are_looked_at() -> None:
    """A name that is allowed may not lead to an address that is denied, nor to the parent unless that is said."""
    where = destination("any.test", 443)
    RULES.check_address(where, ipaddress.ip_address("203.0.113.5"))
    with pytest.raises(RefusedError, match=r"any.test:443: the parent's list says `deny 198.51.100.0/24`"):
        RULES.check_address(where, ipaddress.ip_address("198.51.100.7"))
    for address in ("127.0.0.1", "169.254.169.254", "::1", "fe80::1", "fd00:ec2::254", "0.0.0.0"):
        with pytest.raises(RefusedError, match=f"is {address}, which is the parent's own"):
            RULES.check_address(where, ipaddress.ip_address(address))
    RULES.check_address(destination("any.test", 8443), ipaddress.ip_address("127.0.0.1"))
    RULES.check_denied(where, ipaddress.ip_address("127.0.0.1"))


def test_an_empty_list_allows_nothing() -> None:
    """And neither does one of comments."""
    for text in ("", "# allow **:443\n"):
        assert "no rule" in asked(parse(text, "the list"), "a.org", 443)


@pytest.mark.parametrize(
    "line",
    ["allow", "allow a.org", "permit a.org:443", "allow a.org:0", "allow a.org:65536", "allow a.org:8-7",
     "allow a.org:x", "allow a.org:", "allow a.**.org:443", "allow a**.org:443", "allow 10.0.0.1/8:443",
     "allow 2001:db8::1:443", "allow 1.2.3:443", "allow a.org:443 b.org:443", "allow a..org:443",
     "allow é.org:443", "deny ?.org"],
)  # fmt: skip
def test_a_line_that_is_no_rule_is_an_error_with_its_number(line: str) -> None:
    """Nothing is guessed: a list that is wrong is refused whole."""
    with pytest.raises(InputError, match="line 2:"):
        parse(f"allow a.org:443\n{line}\n", "the list")


@given(st.text(max_size=60), st.text(max_size=40), st.integers(0, 70000))
def test_any_text_is_rules_or_an_input_error(text: str, host: str, port: int) -> None:
    """Any list and any host → a decision, or InputError, nothing else."""
    with contextlib.suppress(InputError, RefusedError):
        parse(text, "the list").check(destination(host, port))


@given(st.sampled_from(["a", "b", "evil"]), st.sampled_from(["", "."]), st.booleans())
def test_a_denied_name_is_denied_however_it_is_spelled(label: str, dot: str, upper: bool) -> None:
    """Case and a dot at the end are no way round a rule."""
    name = f"{label}.example.org{dot}"
    refused = bool(asked(RULES, name.upper() if upper else name, 443))
    assert refused is (label == "evil")
