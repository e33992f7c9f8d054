"""Policies from files: JSON or YAML text in, a policy out.

Core: text and parsed data in; a policy out, or UsageError.

    PCR0: <96 hexadecimal digits>            what `alcove attest measure` prints; PCR0 to PCR31
    ImageSha384: <96 hexadecimal digits>     PCR0 under KMS's name for it
    SignedBy: signer.pem                     the certificate that signed the image (PCR8): a file or the PEM itself
    Parent: i-0123456789abcdef0              the instance (PCR4)
    Role: arn:aws:iam::123456789012:role/r   the instance's role (PCR3)
    AllOf: [{…}, {…}]                        each of these mappings holds
    AnyOf: [{…}, {…}]                        one of them does
    UnsafeAcceptDebugMode: true              accept zero registers of an enclave in debug mode

All lines of a mapping must hold. A list in place of one value is a choice. Names are taken in any case. An unknown
name, a name that occurs twice, an empty mapping and an empty list are errors: each would accept more than was meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from alcove.attestation.policy import (
    PCR,
    AllOf,
    AnyOf,
    ImageSHA384,
    Parent,
    Policy,
    Role,
    SignedBy,
    UnsafeAcceptDebugMode,
)
from alcove.errors import UsageError

ReadFile = Callable[[str], bytes]

MAX_DEPTH: Final = 16  # of AllOf and AnyOf in each other; a file that needs more is not a person's
MAX_ITEMS: Final = 10_000  # of everything in a file; YAML's aliases make any number of them out of a few bytes
_DIGEST_HEX: Final = 96
_PCR_NAME: Final = re.compile(r"pcr([0-9]|[12][0-9]|3[01])")
_PEM: Final = "-----BEGIN "


def parse_policy(text: str, *, read_file: ReadFile | None = None, allow_debug: bool = False) -> Policy:
    """The policy in a JSON or YAML text; arguments and errors as in `policy_from_data`."""
    try:
        raw = json.loads(text, object_pairs_hook=_pairs)
    except ValueError:
        raw = _load_yaml(text)
    except RecursionError:
        raise UsageError("the policy nests too deep") from None
    return policy_from_data(raw, read_file=read_file, allow_debug=allow_debug)


def policy_from_data(raw: object, *, read_file: ReadFile | None = None, allow_debug: bool = False) -> Policy:
    """The policy that a parsed file describes.

    Args:
        raw: A mapping as above. The whole answer of ``build-enclave`` is taken too: the object under ``Measurements``,
            with its ``HashAlgorithm``.
        read_file: Gives the bytes of a file that ``SignedBy`` names; None when files cannot be named.
        allow_debug: Accept debug mode.

    Raises:
        UsageError: It describes no policy.
    """
    _check_size(raw)
    if isinstance(raw, Mapping) and set(raw) == {"Measurements"}:
        raw = raw["Measurements"]
    if isinstance(raw, Mapping):
        raw = {name: value for name, value in raw.items() if name != "HashAlgorithm"}
    policy = _mapping(raw, read_file or _no_file, MAX_DEPTH)
    return AllOf([*policy.policies, UnsafeAcceptDebugMode()]) if allow_debug else policy


def _check_size(raw: object) -> None:
    waiting, count = [raw], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        count += 1
        if count + len(waiting) > MAX_ITEMS:
            raise UsageError(f"the policy has more than {MAX_ITEMS} items")


def _mapping(raw: object, read_file: ReadFile, depth: int) -> AllOf:
    if not isinstance(raw, Mapping):
        raise UsageError("a policy is a mapping of registers to digests", hint='such as {"PCR0": "<96 hex digits>"}')
    if depth == 0:
        raise UsageError("the policy nests too deep")
    if not raw:
        raise UsageError("the policy names no register, and would accept everything")
    policies = [_entry(str(name), value, read_file, depth) for name, value in raw.items()]
    if all(isinstance(policy, UnsafeAcceptDebugMode) for policy in policies):
        raise UsageError("the policy accepts debug mode and names no register, and would accept everything")
    return AllOf(policies)


def _entry(name: str, value: object, read_file: ReadFile, depth: int) -> Policy:
    kind = name.lower()
    if kind in {"allof", "anyof"}:
        members = [_mapping(item, read_file, depth - 1) for item in _list(name, value)]
        return AllOf(members) if kind == "allof" else AnyOf(members)
    if kind == "unsafeacceptdebugmode":
        if value is not True:
            raise UsageError(f"{name!r:.40} is true or absent")
        return UnsafeAcceptDebugMode()
    choices = [_single(name, item, read_file) for item in (_list(name, value) if isinstance(value, list) else [value])]
    return choices[0] if len(choices) == 1 else AnyOf(choices)


def _single(name: str, value: object, read_file: ReadFile) -> Policy:
    kind = name.lower()
    register = _PCR_NAME.fullmatch(kind)
    if register:
        return PCR(int(register[1]), _digest(name, value))
    if kind == "imagesha384":
        return ImageSHA384(_digest(name, value))
    makers: dict[str, Callable[[str], Policy]] = {
        "parent": Parent,
        "role": Role,
        "signedby": lambda text: _signer(text, read_file),
    }
    if kind not in makers:
        known = "PCR0 to PCR31, ImageSha384, SignedBy, Parent, Role, AllOf, AnyOf or UnsafeAcceptDebugMode"
        raise UsageError(f"{name!r:.40} is nothing that a policy can pin", hint=known)
    if not isinstance(value, str):
        raise UsageError(f"{name!r:.40} is not text")
    try:
        return makers[kind](value)
    except ValueError as error:
        raise UsageError(f"{name!r:.40}: {error}") from None


def _signer(text: str, read_file: ReadFile) -> SignedBy:
    pem = text.encode() if text.startswith(_PEM) else read_file(text)
    try:
        return SignedBy.from_pem(pem)
    except ValueError:
        raise ValueError("it holds no certificate in PEM") from None


def _no_file(name: str) -> bytes:
    raise ValueError(f"the file {name!r:.80} cannot be read from here; give the PEM itself")


def _list(name: str, value: object) -> list[object]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{name!r:.40} is not a list with something in it")
    return value


def _digest(name: str, value: object) -> bytes:
    try:
        if isinstance(value, str) and len(value) == _DIGEST_HEX:
            return bytes.fromhex(value)
    except ValueError:
        pass
    raise UsageError(
        f"{name!r:.40} is not a digest of {_DIGEST_HEX} hexadecimal digits", hint="in YAML, put it in quotes"
    )


def _pairs(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """A mapping; of a name that occurs twice, readers would silently take the last value."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for name, value in pairs:
        if not isinstance(name, str):
            raise UsageError(f"`{name!r:.40}` is no name that a policy can have")
        if name.lower() in seen:
            raise UsageError(f"{name!r:.40} occurs twice in the policy")
        seen.add(name.lower())
        found[name] = value
    return found


def _load_yaml(text: str) -> object:
    try:
        import yaml  # noqa: PLC0415 - the verifier does not need it
    except ImportError:
        raise UsageError("the policy is not JSON", hint="to read YAML: pip install pyyaml") from None

    class Loader(yaml.SafeLoader):
        """The safe loader, with mappings that name nothing twice."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[str, Any]:
        construct: Callable[..., Any] = loader.construct_object
        return _pairs((construct(key, deep=True), construct(value, deep=True)) for key, value in node.value)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise UsageError("the policy nests too deep") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # of tags that do not fit
        reason = " ".join(str(error).split())
        raise UsageError(f"the policy is neither JSON nor YAML: {reason:.120}") from None
