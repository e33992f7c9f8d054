"""`acm.yaml`: AWS's schema, and what Alcove adds to it (acm.md §2).

Core: a text in, settings out.

Unknown keys are told and passed over, as AWS passes them over. What Alcove adds: `kms`; the sources File, LocalCa, Acme
and Pkcs12; `mechanisms`, `rate` and `domains` of a token; a target's `form`; `pid_file`, `reload_command`,
`run_directory`, `state_directory` and `socket_group` among the options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from alcove.errors import UsageError

_MEMBERS: Final[dict[str, dict[str, type]]] = {  # of each source; an int is a TCP port, an object is looked at later
    "Acm": {"certificate_arn": str},
    "S3": {"uri": str, "bound": bool},
    "FileDb": {"path": str},
    "File": {"path": str, "url": str, "ca_file": str, "bound": bool},
    "LocalCa": {"directory": str, "domains": object, "key_type": str, "lifetime_days": object},
    "Acme": {
        "directory_url": str, "domains": object, "account_key": str, "webroot": str, "http_port": int, "tls_port": int,
        "contact": str, "ca_file": str, "key_type": str,
    },
    "Pkcs12": {"path": str, "password_file": str},
}  # fmt: skip
SOURCES: Final = tuple(_MEMBERS)
_TARGETS: Final = {"Conf": "Conf", "NginxStanza": "Conf"}
_NEEDED: Final = {  # the members that a source cannot do without
    "Acm": ("certificate_arn",), "S3": ("uri",), "FileDb": ("path",), "File": (), "LocalCa": ("directory", "domains"),
    "Acme": ("directory_url", "domains", "account_key"), "Pkcs12": ("path",),
}  # fmt: skip
_SAFE_PATH: Final = re.compile(r"[^\x00-\x1f\"\\;{}$]+")
SERVICES: Final = ("nginx", "httpd")
FORMS: Final = ("engine", "provider")
MECHANISMS: Final = ("tls", "full")
_MAX_TCP: Final = 0xFFFF
_MAX_VSOCK: Final = 0xFFFFFFFE  # the last one stands for any port


@dataclass(frozen=True, slots=True)
class EnclaveSettings:
    """How the enclave is run."""

    cpu_count: int
    memory_mib: int
    image_path: Path
    boot_timeout_ms: int
    p11kit_port: int
    rpc_port: int


@dataclass(frozen=True, slots=True)
class KmsSettings:
    """Which KMS, and which of its keys.

    Attributes:
        endpoint: `name[:port]`, reached from the parent; None for AWS's.
        key_id: ARN of the key that keys are encrypted under.
    """

    region: str
    endpoint: str | None
    key_id: str | None
    proxy_port: int


@dataclass(frozen=True, slots=True)
class OptionSettings:
    """What is done with the web server.

    Attributes:
        service: nginx or httpd.
        reload_command: Run after a change; empty for the server's own graceful way.
        run_directory: For certificates and the socket.
        state_directory: For sealed keys, which outlive the agent.
    """

    service: str
    sync_interval_secs: int
    reload_command: tuple[str, ...]
    pid_file: Path
    run_directory: Path
    state_directory: Path
    socket_group: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """The file that the web server includes.

    Attributes:
        form: How it names the key: through OpenSSL's engine or provider.
    """

    path: Path
    user: str | None
    group: str | None
    form: str


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """One token: where its key comes from and who uses it.

    Attributes:
        source: The kind of source, of `SOURCES`.
        members: The source's own.
    """

    label: str
    pin: str | None = field(repr=False)
    source: str
    members: Mapping[str, Any]
    target: Target | None
    refresh_interval_secs: int
    mechanisms: str
    rate: float | None
    domains: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file.

    Attributes:
        strange: Keys that mean nothing.
    """

    enclave: EnclaveSettings
    kms: KmsSettings
    options: OptionSettings
    tokens: tuple[TokenSettings, ...]
    strange: tuple[str, ...]


def parse(text: str, *, run_directory: Path, state_directory: Path) -> Settings:
    """The settings in a text.

    Args:
        text: YAML.
        run_directory: Where files go that live as long as the agent, unless the text says so.
        state_directory: Where sealed keys go, likewise.

    Raises:
        UsageError: It is not YAML, or a member is missing or wrong; with its name.
    """
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that is none
        raise UsageError(f"acm.yaml is not YAML: {' '.join(str(error).split()):.160}") from None
    root = _Section("", document)
    settings = Settings(
        _enclave(root.section("enclave")),
        _kms(root.section("kms", {})),
        _options(root.section("options", {}), run_directory, state_directory),
        _tokens(root),
        tuple(_strange(root)),
    )
    labels = [token.label for token in settings.tokens]
    if len(set(labels)) != len(labels):
        raise UsageError("two tokens have the same label")
    return settings


def _strange(root: _Section) -> Iterator[str]:
    root.value("log")
    for section in root.everything():
        yield from section.left()


class _Section:
    """A mapping whose members are taken by name; what is not taken is strange."""

    def __init__(self, name: str, item: Any) -> None:
        if not isinstance(item, dict):
            raise UsageError(f"acm.yaml: {name or 'the file'} is a mapping of names to values")
        self.name, self._item = name, item
        self._taken: set[str] = set()
        self._children: list[_Section] = []

    def everything(self) -> Iterator[_Section]:
        """This section and all below."""
        yield self
        for child in self._children:
            yield from child.everything()

    def left(self) -> list[str]:
        """The members that nobody took."""
        return [self._path(str(name)) for name in self._item if name not in self._taken]

    def value(self, *names: str, default: Any = None) -> Any:
        """The value under the first of these names that is there."""
        self._taken |= set(names)
        return next((self._item[name] for name in names if self._item.get(name) is not None), default)

    def section(self, name: str, default: Any = None) -> _Section:
        """A mapping in this one."""
        child = _Section(self._path(name), self.value(name, default=default))
        self._children.append(child)
        return child

    def sections(self, name: str) -> list[_Section]:
        """A list of mappings."""
        items = self.value(name)
        if not isinstance(items, list) or not items:
            raise UsageError(f"acm.yaml: {self._path(name)} is a list with something in it")
        children = [_Section(f"{self._path(name)}[{number}]", item) for number, item in enumerate(items)]
        self._children += children
        return children

    def only(self, name: str, kinds: tuple[str, ...]) -> tuple[str, _Section]:
        """A union: a mapping with one member, which names its kind."""
        item = self.value(name)
        if not isinstance(item, dict) or len(item) != 1 or next(iter(item)) not in kinds:
            raise UsageError(f"acm.yaml: {self._path(name)} is one of {', '.join(kinds)}")
        ((kind, members),) = item.items()
        child = _Section(f"{self._path(name)}.{kind}", members)
        self._children.append(child)
        return kind, child

    def text(self, *names: str, default: str | None = None) -> str:
        """A text that must be there unless it has a default."""
        found = str(self.typed(str, *names, default=default))
        if not found.isascii() and any("\ud800" <= letter <= "\udfff" for letter in found):
            raise UsageError(f"acm.yaml: {self._path(names[0])} has half a character")
        return found

    def optional(self, name: str) -> str | None:
        """A text that need not be there."""
        return None if self.value(name) is None else self.text(name)

    def number(self, *names: str, default: int | None = None, least: int = 0, most: int | None = None) -> int:
        """A whole number."""
        number = int(self.typed(int, *names, default=default))
        if number < least:
            raise UsageError(f"acm.yaml: {self._path(names[0])} is at least {least}")
        if most is not None and number > most:
            raise UsageError(f"acm.yaml: {self._path(names[0])} is at most {most}")
        return number

    def typed(self, kind: type, *names: str, default: Any = None) -> Any:
        """A value of a type."""
        value = self.value(*names, default=default)
        if value is None:
            raise UsageError(f"acm.yaml: {self._path(names[0])} is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            said = {str: "a text", int: "a whole number", list: "a list", bool: "true or false"}[kind]
            raise UsageError(f"acm.yaml: {self._path(names[0])} is not {said}")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of texts, if it is there."""
        items = self.value(name)
        if items is None:
            return None
        if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
            raise UsageError(f"acm.yaml: {self._path(name)} is a list of texts")
        return tuple(items)

    def members(self, kinds: Mapping[str, type]) -> dict[str, Any]:
        """Those of these names that are there."""
        return {name: self._member(name, kind) for name, kind in kinds.items() if self.value(name) is not None}

    def _member(self, name: str, kind: type) -> Any:
        if kind is str:
            return self.text(name)
        if kind is int:
            return self.number(name, least=1, most=_MAX_TCP)
        return self.value(name) if kind is object else self.typed(kind, name)

    def _path(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def _enclave(section: _Section) -> EnclaveSettings:
    section.value("attestation_retry_count")  # whatever fails is tried again every ten seconds
    return EnclaveSettings(
        section.number("cpu_count", least=1),
        section.number("memory_mib", least=64),
        Path(section.text("image_path", default="/usr/share/nitro_enclaves/p11ne/p11ne.eif")),
        section.number("boot_timeout_ms", default=60_000),
        section.number("p11kit_port", default=9999, least=1, most=_MAX_VSOCK),
        section.number("rpc_port", default=10000, least=1, most=_MAX_VSOCK),
    )


def _kms(section: _Section) -> KmsSettings:
    return KmsSettings(
        section.text("region", default="us-east-1"),
        section.optional("endpoint"),
        section.optional("key_id"),
        section.number("proxy_port", default=8000, least=1, most=_MAX_VSOCK),
    )


def _options(section: _Section, run_directory: Path, state_directory: Path) -> OptionSettings:
    service = section.text("service", default="nginx")
    if service not in SERVICES:
        raise UsageError(f"acm.yaml: options.service is one of {', '.join(SERVICES)}")
    # AWS reads the first and starts the server whatever it says; nobody need wait for a restart that there is not
    section.value("force_start", "nginx_force_start", "reload_wait_ms", "nginx_reload_wait_ms")
    return OptionSettings(
        service,
        section.number("sync_interval_secs", default=600, least=1),
        section.texts("reload_command") or (),
        Path(section.text("pid_file", default=f"/run/{service}.pid")),
        Path(section.text("run_directory", default=str(run_directory))),
        Path(section.text("state_directory", default=str(state_directory))),
        section.optional("socket_group"),
    )


def _tokens(root: _Section) -> tuple[TokenSettings, ...]:
    return tuple([_token(section) for section in root.sections("tokens")])


def _token(section: _Section) -> TokenSettings:
    kind, source = section.only("source", SOURCES)
    members = source.members(_MEMBERS[kind])
    missing = [name for name in _NEEDED[kind] if members.get(name) is None]
    if missing:
        raise UsageError(f"acm.yaml: {source.name}.{missing[0]} is missing")
    label, pin = section.text("label"), section.value("pin")
    if not 1 <= len(label.encode()) <= 32:
        raise UsageError(f"acm.yaml: {section.name}.label has 1 to 32 bytes")
    if pin is not None and not (isinstance(pin, str) and 4 <= len(pin) <= 64 and pin.isalnum() and pin.isascii()):
        raise UsageError(f"acm.yaml: {section.name}.pin has 4 to 64 letters and digits")
    mechanisms = section.text("mechanisms", default="tls")
    if mechanisms not in MECHANISMS:
        raise UsageError(f"acm.yaml: {section.name}.mechanisms is one of {', '.join(MECHANISMS)}")
    return TokenSettings(
        label,
        pin,
        kind,
        members,
        _target(section),
        section.number("refresh_interval_secs", default=43200, least=1),
        mechanisms,
        None if section.value("rate") is None else float(section.number("rate", least=1, most=10**6)),
        _domains(section, members),
    )


def _domains(section: _Section, members: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = section.texts("domains")
    own = members.get("domains")
    if own is None:
        return names
    if not isinstance(own, list) or not own or not all(isinstance(name, str) for name in own):
        raise UsageError(f"acm.yaml: {section.name}.source: domains is a list of names of hosts")
    return tuple(own)


def _target(section: _Section) -> Target | None:
    if section.value("target") is None:
        return None
    _, target = section.only("target", tuple(_TARGETS))
    path, form = target.text("path"), target.text("form", default="engine")
    if form not in FORMS:
        raise UsageError(f"acm.yaml: {target.name}.form is one of {', '.join(FORMS)}")
    if not _SAFE_PATH.fullmatch(path):
        raise UsageError(f"acm.yaml: {target.name}.path has characters that a configuration cannot hold")
    return Target(Path(path), target.optional("user"), target.optional("group"), form)
