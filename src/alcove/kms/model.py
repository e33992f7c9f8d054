"""AWS's own service model decides what a request may hold (kms.md §9, §10.3).

The model is the one that botocore ships, so new members and operations arrive with a version bump. A wrong JSON type
is a SerializationException; everything that the model constrains is a ValidationException in AWS's words, with all
violations in one message.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import botocore.loaders
import orjson
import pybase64

from alcove.kms.errors import KmsError, validation

TARGET_PREFIX: Final = "TrentService"  # §1.1
ALSO_ATTESTED: Final = ("GenerateMac", "PutKeyPolicy", "ReEncrypt", "Sign")
"""Operations that take a Recipient here and not at AWS: policies can ask where the caller runs. No answer is sealed."""
MAX_SHOWN: Final = 256  # characters of a refused value that a message repeats
MAX_PROBLEM: Final = 1024  # characters of one violation: its path has the client's own keys
MAX_TIME: Final = 253_402_300_799  # seconds since the epoch: the end of the year 9999
MAX_PROBLEMS: Final = 32  # violations after which a list is read no further: an answer stays smaller than its request

Shape = Mapping[str, Any]
_Reader = Callable[[Any, str, list[str]], Any]
"""(JSON value, its path, problems to add to) → the value as handlers have it."""
_Writer = Callable[[Any], Any]
"""A value as handlers have it → the JSON value."""


class Model:
    """Parses requests and renders answers by the shapes of one service model.

    Args:
        description: botocore's ``service-2`` document.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._shapes: Mapping[str, Shape] = description["shapes"]
        self._operations: Mapping[str, Any] = description["operations"]
        self._names = frozenset(self._operations)
        self._readers: dict[str, _Reader] = {}
        self._writers: dict[str, _Writer] = {}

    @property
    def operations(self) -> frozenset[str]:
        """Names of every operation of the model, served or not."""
        return self._names

    def members(self, operation: str) -> frozenset[str]:
        """Names of the request members of an operation."""
        shape = self._shapes[self._operations[operation]["input"]["shape"]]
        return frozenset(shape["members"])

    def parse(self, operation: str, body: bytes) -> dict[str, Any]:
        """The request's members, with blobs as bytes and JSON nulls left out.

        Raises:
            KmsError: SerializationException or ValidationException.
        """
        value = decode_json(body)
        problems: list[str] = []
        shape = self._operations[operation].get("input")
        parsed = self._reader(shape["shape"])(value, "", problems) if shape else {}
        if problems:
            many = "error" if len(problems) == 1 else "errors"
            shown = "; ".join(problem[:MAX_PROBLEM] for problem in problems)
            raise validation(f"{len(problems)} validation {many} detected: {shown}")
        return cast("dict[str, Any]", parsed)

    def render(self, operation: str, result: Mapping[str, Any]) -> bytes:
        """The answer's JSON; an empty body for an operation without output (§1.3).

        Raises:
            KeyError: The result has a member that the model does not know: a programming mistake.
        """
        output = self._operations[operation].get("output")
        if output is None:
            return b""
        return orjson.dumps(self._writer(output["shape"])(result))

    def _reader(self, name: str) -> _Reader:
        """What reads values of a shape; made when it is first needed, for shapes may hold themselves."""
        if name not in self._readers:
            self._readers[name] = self._made_reader(self._shapes[name])
        return self._readers[name]

    def _made_reader(self, shape: Shape) -> _Reader:
        kind = shape["type"]
        if kind not in _READERS:
            return _unserved
        if kind == "structure":
            return self._structure_reader(shape)
        typed, fits = _READERS[kind], _check_of(shape)
        inner = self._list_reader(shape) if kind == "list" else self._map_reader(shape) if kind == "map" else None

        def read(value: Any, path: str, problems: list[str]) -> Any:
            value = typed(value, path)
            if inner is not None:
                value = inner(value, path, problems)
            if fits is not None and not fits(value):
                broken = _broken(shape, value)
                problems += (f"{_shown(shape, value, path)} failed to satisfy constraint: {c}" for c in broken)
            return value

        return read

    def _list_reader(self, shape: Shape) -> _Reader:
        member = shape["member"]["shape"]

        def read(value: list[Any], path: str, problems: list[str]) -> list[Any]:
            item, found = self._reader(member), []
            for i, v in enumerate(value, 1):
                found.append(item(v, f"{path}.{i}.member", problems))
                if len(problems) >= MAX_PROBLEMS:
                    break
            return found

        return read

    def _map_reader(self, shape: Shape) -> _Reader:
        def read(value: dict[str, Any], path: str, problems: list[str]) -> dict[str, Any]:
            key, inner = self._reader(shape["key"]["shape"]), self._reader(shape["value"]["shape"])
            found = {}
            for k, v in value.items():
                found[key(k, f"{path}.key", problems)] = inner(v, f"{path}.{k}.value", problems)
                if len(problems) >= MAX_PROBLEMS:
                    break
            return found

        return read

    def _structure_reader(self, shape: Shape) -> _Reader:
        required = frozenset(shape.get("required", ()))
        members = [(member, _camel(member), target["shape"]) for member, target in shape["members"].items()]
        typed, readers = _READERS["structure"], self._readers

        def read(value: Any, path: str, problems: list[str]) -> dict[str, Any]:
            value, parsed = typed(value, path), {}
            for member, shown, target in members:
                given = value.get(member)
                if given is not None:
                    reader = readers.get(target) or self._reader(target)
                    parsed[member] = reader(given, f"{path}.{shown}" if path else shown, problems)
                elif member in required:
                    place = f"{path}.{shown}" if path else shown
                    problems.append(f"Value null at '{place}' failed to satisfy constraint: Member must not be null")
            return parsed

        return read

    def _writer(self, name: str) -> _Writer:
        """What writes values of a shape; made when it is first needed, as `_reader`."""
        if name not in self._writers:
            self._writers[name] = self._made_writer(self._shapes[name])
        return self._writers[name]

    def _made_writer(self, shape: Shape) -> _Writer:
        match shape["type"]:
            case "structure":
                return self._structure_writer(shape)
            case "list":
                member = shape["member"]["shape"]
                return lambda value: list(map(self._writer(member), value))
            case "map":
                inner = shape["value"]["shape"]
                return lambda value: {k: self._writer(inner)(v) for k, v in value.items()}
            case "blob":
                return _text
            case _:
                return _same

    def _structure_writer(self, shape: Shape) -> _Writer:
        members: dict[str, _Writer] = {}

        def write(value: Mapping[str, Any]) -> dict[str, Any]:
            if not members:
                members.update({name: self._writer(member["shape"]) for name, member in shape["members"].items()})
            return {name: members[name](v) for name, v in value.items() if v is not None}

        return write


@functools.cache
def kms_model() -> Model:
    """The KMS model of the installed botocore, read once."""
    description = copy.deepcopy(botocore.loaders.Loader().load_service_model("kms", "service-2"))
    for operation in ALSO_ATTESTED:
        shape = description["operations"][operation]["input"]["shape"]
        description["shapes"][shape]["members"]["Recipient"] = {"shape": "RecipientInfo"}
    return Model(description)


def decode_json(body: bytes) -> dict[str, Any]:
    """One JSON object, strictly: UTF-8, no duplicate keys, no lone surrogates, no NaN.

    Raises:
        KmsError: SerializationException.
    """
    try:
        text = (body.decode("utf-8") or "{}").strip(_SPACE)
        value, end = _DECODER.raw_decode(text)
        if "\\" in text and "\\u" in text:  # a lone surrogate can only be written as an escape; one character is fast
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise KmsError("SerializationException", "the body is not a JSON object of this service") from error
    if end != len(text) or not isinstance(value, dict):
        raise KmsError("SerializationException", "the body is not a JSON object of this service")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


_SPACE: Final = " \t\r\n"  # RFC 8259 §2
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _unserved(value: Any, path: str, problems: list[str]) -> Any:
    del value, problems
    raise KmsError("SerializationException", f"the type of {path} is not served")


def _camel(member: str) -> str:
    return member[:1].lower() + member[1:]


def _typed(kind: type | tuple[type, ...], name: str) -> Callable[[Any, str], Any]:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise KmsError("SerializationException", f"{path or 'the body'} must be a JSON {name}")
        return value

    return read


_number = _typed((int, float), "number")


def _timestamp(value: Any, path: str) -> Any:
    value = _number(value, path)
    if not abs(value) <= MAX_TIME:
        raise KmsError("SerializationException", f"{path} is not within the years that there are")
    return value


def _blob(value: Any, path: str) -> bytes:
    try:
        return pybase64.b64decode(value, None, validate=True)
    except (TypeError, ValueError):
        raise KmsError("SerializationException", f"{path} must be base64 in a JSON string") from None


_READERS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "structure": _typed(dict, "object"),
    "map": _typed(dict, "object"),
    "list": _typed(list, "array"),
    "string": _typed(str, "string"),
    "integer": _typed(int, "integer"),
    "long": _typed(int, "integer"),
    "boolean": _typed(bool, "boolean"),
    "timestamp": _timestamp,
    "blob": _blob,
}


_CONSTRAINTS: Final = frozenset({"min", "max", "enum", "pattern"})
_NUMBERS: Final = frozenset({"integer", "long", "timestamp"})  # measured by their value, everything else by its length


def _check_of(shape: Shape) -> Callable[[Any], bool] | None:
    """Tells whether a value breaks no constraint; None when there is none to break."""
    if not _CONSTRAINTS & shape.keys():
        return None
    measure: Callable[[Any], Any] = _same if shape["type"] in _NUMBERS else len
    least, most = shape.get("min", -math.inf), shape.get("max", math.inf)
    choices = frozenset(shape["enum"]) if "enum" in shape else None
    matches = _pattern(shape["pattern"]).fullmatch if "pattern" in shape else None

    def fits(value: Any) -> bool:
        return (
            least <= measure(value) <= most
            and (choices is None or value in choices)
            and (matches is None or matches(value) is not None)
        )

    return fits


def _same(value: Any) -> Any:
    return value


def _text(value: bytes) -> str:
    return pybase64.b64encode_as_string(value)


def _broken(shape: Shape, value: Any) -> list[str]:
    """The constraints that a value breaks, in AWS's words (§10.3)."""
    found = []
    measure, noun = (value, "value") if shape["type"] in _NUMBERS else (len(value), "length")
    if measure < shape.get("min", measure):
        found.append(f"Member must have {noun} greater than or equal to {shape['min']}")
    if measure > shape.get("max", measure):
        found.append(f"Member must have {noun} less than or equal to {shape['max']}")
    if "enum" in shape and value not in shape["enum"]:
        found.append(f"Member must satisfy enum value set: [{', '.join(shape['enum'])}]")
    if "pattern" in shape and not _pattern(shape["pattern"]).fullmatch(value):
        found.append(f"Member must satisfy regular expression pattern: {shape['pattern']}")
    return found


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.ASCII)  # the model's patterns are Java's, whose classes are ASCII


def _shown(shape: Shape, value: Any, path: str) -> str:
    """``Value '…' at 'path'``; a secret or a blob leaves its value out."""
    if shape.get("sensitive") or isinstance(value, bytes):
        return f"Value at '{path}'"
    text = str(value)
    return f"Value '{text[:MAX_SHOWN]}{'…' if len(text) > MAX_SHOWN else ''}' at '{path}'"
