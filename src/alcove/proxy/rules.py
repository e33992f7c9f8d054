"""Which destinations may be reached: one grammar for the list in an enclave's image and the one on its parent.

Core: text in, decisions out.

    # a comment
    allow kms.*.amazonaws.com:443          `*` stands for one label of a name, or a part of one
    allow **.example.org:443,8443          `**`, in front only, for one label or more
    allow 192.0.2.0/24:8000-8100           addresses and networks; [2001:db8::/32]:443 in IPv6
    deny  169.254.0.0/16                   without ports: all of them

1. What no rule allows is refused, and a rule that denies is stronger than any that allows.
2. A name is allowed by a rule of names, an address by a rule of addresses. Names are compared without regard to case
   and to a dot at their end. What looks like an address and is not one in the usual form is refused.
3. On the parent the addresses that a name stands for are looked at as well: none may be denied, and the parent's
   loopback, link-local addresses (instance metadata) and their like have to be allowed by a rule of just such
   addresses, `127.0.0.0/8` or narrower, and never by a wide one.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from alcove.errors import AlcoveError, InputError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Ports = tuple[tuple[int, int], ...]  # ranges, both ends included

MAX_RULES: Final = 4096
MAX_NAME: Final = 253  # RFC 1035 §2.3.4, without the dot at the end
ALL_PORTS: Final[Ports] = ((1, 0xFFFF),)
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_GLOB: Final = re.compile(r"[a-z0-9_*-]{1,63}")
_NUMERIC: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label by which resolvers take a name for an address
_METADATA: Final = ipaddress.IPv6Network("fd00:ec2::/32")  # EC2's services in IPv6, within the unique local addresses


class RefusedError(AlcoveError):
    """A rule does not allow a destination; the message names the rule."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A host and a port; `address` when the host is an IP address. Both are in their usual form."""

    host: str
    port: int
    address: Address | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def destination(host: str, port: int) -> Destination:
    """Bring a host into its usual form.

    Args:
        host: A name, or an IP address with or without brackets.
        port: 1 to 65535.

    Raises:
        InputError: It is neither, or the port is none.
    """
    if not 0 < port < 1 << 16:
        raise InputError(f"port {port} cannot be")
    address = _address(host.removeprefix("[").removesuffix("]"))
    if address is not None:
        return Destination(str(address), port, address)
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels) or _NUMERIC.fullmatch(labels[-1]):
        raise InputError(f"{host[:MAX_NAME]!r} is neither a host name nor an IP address")
    return Destination(name, port)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return plain(address)


def plain(address: Address) -> Address | None:
    """IPv4 for IPv4 in IPv6's clothes; None with a zone, which is one machine's own."""
    if isinstance(address, ipaddress.IPv6Address):
        return None if address.scope_id else address.ipv4_mapped or address
    return address


@dataclass(frozen=True, slots=True)
class Pattern:
    """Hosts and ports: a network, or labels in which `*` stands for something."""

    ports: Ports
    network: Network | None = None
    labels: tuple[str, ...] = ()

    def fits(self, where: Destination) -> bool:
        """Whether a destination is among them, by its name or as an address."""
        return self._has_port(where.port) and (
            self._has_name(where.host) if where.address is None else self._has_address(where.address)
        )

    def covers(self, address: Address, port: int) -> bool:
        """Whether an address is among them."""
        return self._has_port(port) and self._has_address(address)

    def _has_port(self, port: int) -> bool:
        return any(first <= port <= last for first, last in self.ports)

    def _has_address(self, address: Address) -> bool:
        return self.network is not None and address in self.network

    def _has_name(self, name: str) -> bool:
        if self.network is not None:
            return False
        labels, wanted = name.split("."), self.labels
        if wanted[0] == "**":
            wanted = wanted[1:]
            if len(labels) <= len(wanted):
                return False
            labels = labels[len(labels) - len(wanted) :]
        return len(labels) == len(wanted) and all(map(fnmatch.fnmatchcase, labels, wanted))


def host_pattern(text: str, ports: Ports) -> Pattern:
    """A pattern of a name, an address or a network, and ports.

    Raises:
        InputError: It is none of the three.
    """
    bare = text.removeprefix("[").removesuffix("]")
    try:
        return Pattern(ports, network=_network(bare))
    except ValueError:
        pass
    labels = tuple(text.lower().removesuffix(".").split("."))
    if not all(_GLOB.fullmatch(label) for label in labels) or any("**" in label for label in labels[1:]):
        raise InputError(f"`{text}` is not a name, an address or a network")
    if ("**" in labels[0] and labels[0] != "**") or _NUMERIC.fullmatch(labels[-1]):
        raise InputError(f"`{text}` is not a name, an address or a network")
    return Pattern(ports, labels=labels)


def _network(text: str) -> Network:
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


def ports_of(text: str) -> Ports:
    """Ports: a number, a range `8000-8100`, several with commas, or `*`.

    Raises:
        InputError: It is none of these.
    """
    if text == "*":
        return ALL_PORTS
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last < 1 << 16:
            raise InputError(f"`{text}` is not a port, a range of ports, or `*`")
        found.append((first, last))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of a list."""

    allow: bool
    pattern: Pattern
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Rules:
    """A list, and whose it is, for its refusals."""

    owner: str
    rules: tuple[Rule, ...]

    def check(self, where: Destination) -> None:
        """Ask for a destination by its name or as an address.

        Raises:
            RefusedError: It is denied, or nothing allows it.
        """
        self._deny(where, (rule for rule in self.rules if rule.pattern.fits(where)))
        allowing = [rule for rule in self.rules if rule.allow and rule.pattern.fits(where)]
        if not allowing:
            raise RefusedError(f"{where}: no rule of {self.owner} allows it")
        if where.address is not None:
            self._special(where, where.address)

    def check_address(self, where: Destination, address: Address) -> None:
        """On the parent: look at an address that an allowed name stands for.

        Raises:
            RefusedError: It is denied, or it is one that has to be allowed by itself.
        """
        self.check_denied(where, address)
        self._special(where, address)

    def check_denied(self, where: Destination, address: Address) -> None:
        """In the enclave: look at the address that the parent says it has reached.

        Raises:
            RefusedError: It is denied.
        """
        self._deny(where, (rule for rule in self.rules if rule.pattern.covers(address, where.port)))

    def names(self) -> tuple[Pattern, ...]:
        """The patterns of names that are allowed."""
        return tuple(rule.pattern for rule in self.rules if rule.allow and rule.pattern.labels)

    def _deny(self, where: Destination, rules: Iterable[Rule]) -> None:
        for rule in rules:
            if not rule.allow:
                raise RefusedError(f"{where}: {self.owner} says `{rule.text}` in line {rule.line}")

    def _special(self, where: Destination, address: Address) -> None:
        if not _is_special(address):
            return
        for rule in self.rules:
            network = rule.pattern.network
            if rule.allow and network is not None and _is_special(network) and rule.pattern.covers(address, where.port):
                return
        which = "" if where.address is not None else f" is {address}, which"
        raise RefusedError(
            f"{where}{which} is the parent's own or link-local, and no rule of {self.owner} allows just such addresses",
            hint=f"allow {address}:{where.port}, if it is meant",
        )


def _is_special(what: Address | Network) -> bool:
    metadata = what in _METADATA if isinstance(what, ipaddress.IPv6Address) else False
    if isinstance(what, ipaddress.IPv6Network):
        metadata = what.subnet_of(_METADATA)
    return (
        metadata or what.is_loopback or what.is_link_local or what.is_multicast or what.is_unspecified
        or what.is_reserved
    )  # fmt: skip


def parse(text: str, owner: str) -> Rules:
    """Read a list.

    Args:
        text: The rules, one a line.
        owner: Whose list it is, such as "the parent's list".

    Raises:
        InputError: A line is no rule; the message has its number.
    """
    rules = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = " ".join(raw.partition("#")[0].split())
        if not line:
            continue
        try:
            rules.append(_rule(line, number))
        except InputError as error:
            raise InputError(f"{owner}, line {number}: {error.message}", hint=error.hint) from None
    if len(rules) > MAX_RULES:
        raise InputError(f"{owner} has more than {MAX_RULES} rules")
    return Rules(owner, tuple(rules))


def _rule(line: str, number: int) -> Rule:
    verb, _, rest = line.partition(" ")
    if verb not in ("allow", "deny") or not rest or " " in rest:
        raise InputError(f"`{line}` is not a rule", hint="allow HOST:PORTS, or deny HOST[:PORTS]")
    host, ports = _split(rest)
    if ports is None and verb == "allow":
        raise InputError(f"`{line}` names no ports", hint=f"{line}:443, or {line}:* for all of them")
    return Rule(verb == "allow", host_pattern(host, ALL_PORTS if ports is None else ports_of(ports)), line, number)


def _split(text: str) -> tuple[str, str | None]:
    """Host and ports; an address of IPv6 is in brackets when ports follow."""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([^:]*))?", text)
    return (match[1], match[2]) if match else (text, None)
