"""What a person asks for: the arguments of run-enclave, from flags or from a file.

Core: texts in, a checked request out.

Source: cli.md §1.1 and §1.2.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Final, Literal

from alcove.errors import UsageError
from alcove.types import Cid

_MEMORY: Final = re.compile(r"(\d{1,18})([MmGgTt]?)")
_UNITS: Final = {"": 1, "m": 1, "g": 1024, "t": 1024 * 1024}
_MAX_MEMORY_MIB: Final = 2**44  # what a 64-bit byte count holds
_MAX_BOOT_SECONDS: Final = 86400
_ROLE: Final = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/([!-~]{1,510}/)?[\w+=,.@-]{1,64}", re.ASCII)  # IAM's limits
_RESERVED_CIDS: Final = {1, 2, 3, 0xFFFFFFFF}
_CONFIG_KEYS: Final = {
    "eif_path", "memory_mib", "cpu_count", "cpu_ids", "enclave_cid", "debug_mode", "attach_console", "enclave_name",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A checked request to start an enclave. Exactly one of ``cpu_count`` and ``cpu_ids`` is set.

    ``boot_timeout`` is in seconds; ``parent_role`` is the ARN of an IAM role, which PCR3 stands for.
    """

    eif_path: str
    memory_mib: int
    cpu_count: int | None = None
    cpu_ids: tuple[int, ...] | None = None
    enclave_cid: Cid | None = None
    debug_mode: bool = False
    attach_console: bool = False
    enclave_name: str | None = None
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    boot_timeout: float | None = None
    parent_role: str | None = None

    def __post_init__(self) -> None:
        if self.cpu_count is None and self.cpu_ids is None:
            raise UsageError("the argument `cpu-count` is missing", code="E01", hint="pass --cpu-count or --cpu-ids")
        if self.cpu_count is not None and self.cpu_ids is not None:
            raise UsageError("`cpu-count` and `cpu-ids` exclude each other", code="E02", hint="keep one of the two")
        if self.enclave_cid is not None and (self.enclave_cid in _RESERVED_CIDS or self.enclave_cid > 0xFFFFFFFF):
            raise invalid("enclave-cid", str(self.enclave_cid), "this CID is reserved; use 4 or more")
        if self.enclave_name is not None and not re.fullmatch(r"[^\s/\x00]{1,128}", self.enclave_name):
            raise invalid("enclave-name", self.enclave_name, "1 to 128 characters without spaces and slashes")
        if self.boot_timeout is not None and not 0 < self.boot_timeout <= _MAX_BOOT_SECONDS:
            reason = f"more than 0 and at most {_MAX_BOOT_SECONDS} seconds are needed"
            raise invalid("boot-timeout", f"{self.boot_timeout:g}", reason)
        if self.parent_role is not None and not _ROLE.fullmatch(self.parent_role):
            raise invalid("parent-role", self.parent_role, "the ARN of a role is arn:aws:iam::ACCOUNT:role/NAME")

    @property
    def wanted_name(self) -> str:
        """The given name, or the image's file name without every trailing ``.eif`` (cli.md §3.2)."""
        name = self.enclave_name or PurePath(self.eif_path).name
        if self.enclave_name is None:
            while name.endswith(".eif"):
                name = name.removesuffix(".eif")
        return name or "enclave"


def invalid(name: str, text: str, reason: str) -> UsageError:
    """The error for a value of the wrong form (E03)."""
    return UsageError(f"`{text}` is not a valid value for `{name}`: {reason}", code="E03")


def parse_memory(text: str) -> int:
    """MiB from ``512``, ``512M``, ``2G`` or ``1T``.

    Raises:
        UsageError: E03 for any other form, or an amount no machine can have.
    """
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise invalid("memory", text, "give MiB, or a number with M, G or T")
    mib = int(match[1]) * _UNITS[match[2].lower()]
    if mib > _MAX_MEMORY_MIB:
        raise invalid("memory", text, "that is more than a machine can address")
    return mib


def parse_number(name: str, text: str, *, bits: int = 32) -> int:
    """An unsigned number of at most ``bits`` bits.

    Raises:
        UsageError: E03.
    """
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << bits:
        raise invalid(name, text, f"a whole number from 0 to {(1 << bits) - 1} is needed")
    return int(text)


def parse_cid(text: str) -> Cid | None:
    """A CID; ``0`` means "choose one"."""
    return Cid(parse_number("enclave-cid", text, bits=64)) or None


def parse_config(text: str) -> RunRequest:
    """The file of ``--config`` (cli.md §1.2).

    Raises:
        UsageError: E17 for bad JSON or unknown keys, E01 for what is missing, E03 for values of the wrong type.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise UsageError(f"the config file is not JSON: {error}", code="E17") from None
    if not isinstance(raw, dict) or (unknown := set(raw) - _CONFIG_KEYS):
        what = f"unknown key {min(unknown)!r}" if isinstance(raw, dict) else "an object is needed"
        raise UsageError(f"the config file is not in the expected format: {what}", code="E17")
    for key in ("eif_path", "memory_mib"):
        if key not in raw:
            raise UsageError(f"the argument `{key}` is missing", code="E01", hint="add it to the config file")
    ids = _typed(raw, "cpu_ids", list)
    for cpu in ids or ():
        _number("cpu_ids", cpu)
    debug = bool(_typed(raw, "debug_mode", bool)) or bool(_typed(raw, "attach_console", bool))
    return RunRequest(
        eif_path=_typed(raw, "eif_path", str) or "",
        memory_mib=_number("memory_mib", raw["memory_mib"]),
        cpu_count=None if raw.get("cpu_count") is None else _number("cpu_count", raw["cpu_count"]),
        cpu_ids=None if ids is None else tuple(ids),
        enclave_cid=None if not raw.get("enclave_cid") else Cid(_number("enclave_cid", raw["enclave_cid"])),
        debug_mode=debug,
        attach_console=bool(raw.get("attach_console")),
        enclave_name=_typed(raw, "enclave_name", str),
    )


def encode_request(request: RunRequest) -> bytes:
    """A request on its way to the supervisor: one line of JSON."""
    return json.dumps(asdict(request)).encode() + b"\n"


def decode_request(line: bytes) -> RunRequest:
    """The other end of :func:`encode_request`."""
    raw = json.loads(line)
    ids = raw["cpu_ids"]
    return RunRequest(**(raw | {"cpu_ids": None if ids is None else tuple(ids)}))


def _typed(raw: dict[str, Any], key: str, kind: type) -> Any:
    value = raw.get(key)
    if value is not None and not isinstance(value, kind):
        raise invalid(key, str(value), f"a {kind.__name__} is needed")
    return value


def _number(key: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise invalid(key, str(value), "a whole number is needed")
    return value
