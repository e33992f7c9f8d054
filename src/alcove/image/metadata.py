"""The metadata section (eif.md §4): compact JSON with nitro-cli's keys in nitro-cli's order.

Core: values in, bytes out; bytes in, values out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isinf
from typing import Any, Final, NoReturn

from alcove.errors import ImageFormatError, UsageError

MAX_CUSTOM: Final = 4096  # eif.md §4: bytes of a --metadata file
MAX_DEPTH: Final = 64  # ours: levels of JSON
UNKNOWN: Final = "Unknown"
_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_TRANSPORT: Final = re.compile(r"(docker-daemon|docker-archive|oci-archive|oci|dir|containers-storage):|docker://")


@dataclass(frozen=True, slots=True)
class BuildMetadata:
    """Who built the image, when, and around which kernel; `build_time` is RFC 3339 text."""

    build_time: str
    build_tool: str
    build_tool_version: str
    operating_system: str = UNKNOWN
    kernel_version: str = UNKNOWN

    def to_json(self) -> dict[str, str]:
        """The object as it stands in the section."""
        return {
            "BuildTime": self.build_time,
            "BuildTool": self.build_tool,
            "BuildToolVersion": self.build_tool_version,
            "OperatingSystem": self.operating_system,
            "KernelVersion": self.kernel_version,
        }


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """The content of a metadata section; `custom` is a JSON object or None."""

    name: str
    version: str
    build: Mapping[str, Any]
    docker_info: Any
    custom: Mapping[str, Any] | None

    def pack(self) -> bytes:
        """The section's data.

        Raises:
            ImageFormatError: When a value could not be read back: half a character, no number, nested too deep.
        """
        fields = {
            "ImageName": self.name,
            "ImageVersion": self.version,
            "BuildMetadata": dict(self.build),
            "DockerInfo": self.docker_info,
            "CustomMetadata": None if self.custom is None else dict(self.custom),
        }
        try:
            data = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise ImageFormatError("holds what JSON cannot: half a character, or no number", field="metadata") from None
        parse_json(data)
        return data

    def describe(self) -> dict[str, Any]:
        """The `Metadata` object of describe-eif: build, container and custom keys in one level (eif.md §4)."""
        return {**self.build, "DockerInfo": self.docker_info, **(self.custom or {})}


def parse_json(data: bytes) -> Any:
    """The JSON in a section's data: UTF-8, finite numbers, each key once, whole characters, 64 levels at most.

    Raises:
        ImageFormatError: When it is not that.
    """
    try:
        item = json.loads(
            data.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_each_once
        )
    except (ValueError, RecursionError):
        raise ImageFormatError("not JSON", field="metadata") from None
    level = [item]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ImageFormatError(f"nested deeper than {MAX_DEPTH} levels", field="metadata")
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # an escape such as \ud800 alone, which no UTF-8 can show
        raise ImageFormatError("holds half a character", field="metadata") from None
    return item


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity, which Python reads and JSON does not know


def _finite(digits: str) -> float:
    value = float(digits)
    if isinf(value):  # it would be shown as Infinity
        raise ValueError(digits)
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    if len(item) != len(pairs):  # readers differ in which of two they take
        raise ValueError(pairs)
    return item


def _inside(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def parse_metadata(data: bytes, *, lenient: bool = False) -> ImageMetadata:
    """The metadata in a section's data.

    Args:
        data: The section's data.
        lenient: Take DockerInfo and CustomMetadata as null where they are missing; the published schema lets the
            latter be absent, and AWS's reader does not (eif.md §4).

    Raises:
        ImageFormatError: When it is not JSON, or keys are missing or of another type.
    """
    item = parse_json(data)
    if not isinstance(item, dict):
        raise ImageFormatError("not a JSON object", field="metadata")
    if lenient:
        item = {"DockerInfo": None, "CustomMetadata": None} | item
    for key in ("ImageName", "ImageVersion", "BuildMetadata", "DockerInfo", "CustomMetadata"):
        if key not in item:
            raise ImageFormatError(f"{key} is missing", field="metadata")
    name, version, build, custom = (
        item[key] for key in ("ImageName", "ImageVersion", "BuildMetadata", "CustomMetadata")
    )
    if not isinstance(name, str) or not isinstance(version, str):
        raise ImageFormatError("ImageName and ImageVersion are texts", field="metadata")
    if not isinstance(build, dict) or not isinstance(custom, dict | None):
        raise ImageFormatError("BuildMetadata and CustomMetadata are objects", field="metadata")
    return ImageMetadata(name, version, build, item["DockerInfo"], custom)


def parse_custom(data: bytes) -> dict[str, Any] | None:
    """The content of a --metadata file.

    Raises:
        UsageError: When it is too long, or neither a JSON object nor null.
    """
    hint = f"give a file with a JSON object of at most {MAX_CUSTOM} bytes"
    if len(data) > MAX_CUSTOM:
        raise UsageError(f"the metadata file holds more than {MAX_CUSTOM} bytes", hint=hint, code="E48")
    try:
        item = parse_json(data)
    except ImageFormatError as error:
        message = f"the metadata file is not JSON that an image can hold: {error.message}"
        raise UsageError(message, hint=hint, code="E48") from None
    if item is not None and not isinstance(item, dict):
        raise UsageError("the metadata file does not hold a JSON object", hint=hint, code="E48")
    return item


def build_time_text(given: str | None, epoch: str | None, now: datetime) -> str:
    """BuildTime: the given text as it is, else SOURCE_DATE_EPOCH, else now.

    Raises:
        UsageError: E03 when the text is no RFC 3339 time, or the epoch no number of seconds.
    """
    if given is not None:
        if not _RFC_3339.fullmatch(given) or not _is_a_time(given):
            hint = "such as 2026-01-31T12:00:00Z"
            raise UsageError(f"`{given}` is not a valid value for `build-time`: RFC 3339", hint=hint, code="E03")
        return given
    if not epoch:
        return now.isoformat()
    try:
        return datetime.fromtimestamp(int(epoch) if epoch.isascii() and epoch.isdigit() else -1e30, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        hint = "give seconds since 1970, as `git log -1 --format=%ct` prints them"
        message = f"`{epoch}` is not a valid value for `SOURCE_DATE_EPOCH`: not a time in seconds"
        raise UsageError(message, hint=hint, code="E03") from None


def _is_a_time(text: str) -> bool:
    """Whether every field is in its range; a fraction finer than a microsecond, which nitro-cli writes, may stand."""
    try:
        datetime.fromisoformat(re.sub(r"\.\d+", "", text.upper()))
    except ValueError:
        return False
    return True


def kernel_identity(config: str) -> tuple[str, str]:
    """Operating system and version of a kernel, from line 3 of its configuration.

    `# Linux/x86_64 4.14.256-209.484.amzn2.x86_64 Kernel Configuration` gives `Linux` and `4.14.256`.
    """
    lines = config.splitlines()
    words = re.split(r"[ /-]", lines[2]) if len(lines) > 2 else []
    return _word(words, 1), _word(words, 3)


def _word(words: list[str], index: int) -> str:
    return words[index] if len(words) > index and words[index] else UNKNOWN


def default_image_name(uri: str) -> str:
    """The image's name when none is given: the reference up to its first colon, as in nitro-cli.

    A reference with a transport (`oci:/images/app.tar`) has no precedent there; its last path component is taken.
    """
    match = _TRANSPORT.match(uri)
    if match is None:
        return uri.split(":", 1)[0]
    rest = uri[match.end() :].rstrip("/")
    return rest.rsplit("/", 1)[-1].split(":", 1)[0].split("@", 1)[0] or rest
