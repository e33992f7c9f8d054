"""Opening a key of a PKCS#11 token: the module, the token, the PIN, the session.

The PIN comes from a file or from the environment, never from argv; it is tried once, for tokens lock after a few
failures, and no message repeats it. The last key that is closed finalizes its module; a process that forks opens keys
after it has forked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pkcs11
from pkcs11 import PROTECTED_AUTH, TokenFlag

from alcove.errors import AlcoveError, MachineError, UsageError
from alcove.pkcs11.keys import TokenKey, find_key, reason
from alcove.pkcs11.uri import Pkcs11Uri

MODULE_VARIABLES: Final = ("NITRO_CLI_PKCS11_MODULE", "ALCOVE_PKCS11_MODULE")
PIN_VARIABLES: Final = ("NITRO_CLI_PKCS11_PIN", "ALCOVE_PKCS11_PIN")
MAX_PIN: Final = 256  # bytes
_DIRECTORIES: Final = (  # where distributions put modules, for module-name
    "/usr/lib/pkcs11", "/usr/lib64/pkcs11", "/usr/lib/x86_64-linux-gnu/pkcs11", "/usr/lib/aarch64-linux-gnu/pkcs11",
    "/usr/lib/softhsm", "/usr/lib64/softhsm", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64",
    "/usr/lib", "/usr/local/lib",
)  # fmt: skip
_LOCK = threading.Lock()
_USERS: dict[str, int] = {}


@contextlib.contextmanager
def open_key(uri: Pkcs11Uri | str, *, environment: Mapping[str, str]) -> Iterator[TokenKey]:
    """The private key that a URI names, usable until the block ends.

    Args:
        uri: RFC 7512. The module is its module-path or module-name, else NITRO_CLI_PKCS11_MODULE or
            ALCOVE_PKCS11_MODULE; the PIN is in the file of its pin-source, else in NITRO_CLI_PKCS11_PIN or
            ALCOVE_PKCS11_PIN.
        environment: Where those variables are.

    Raises:
        UsageError: The URI, the PIN, or a key that is not there, not alone or not fit.
        MachineError: The module or the token.
    """
    where = Pkcs11Uri.parse(uri) if isinstance(uri, str) else uri
    with _open(where, environment) as (session, pin):
        try:
            key = find_key(session, where, pin if isinstance(pin, str) else None)
        except pkcs11.PKCS11Error as error:
            raise _unusable(error) from error
        yield key


@contextlib.contextmanager
def open_session(uri: Pkcs11Uri, *, environment: Mapping[str, str]) -> Iterator[Any]:
    """A session with the token that a URI names, logged in, until the block ends; errors as in `open_key`."""
    with _open(uri, environment) as (session, _):
        try:
            yield session
        except pkcs11.PKCS11Error as error:
            raise _unusable(error) from error


@contextlib.contextmanager
def _open(uri: Pkcs11Uri, environment: Mapping[str, str]) -> Iterator[tuple[Any, str | object | None]]:
    with contextlib.ExitStack() as stack:
        try:
            module = stack.enter_context(_module(_module_path(uri, environment)))
            token = _token(module, uri)
            pin = _pin(token, uri, environment)
            session = stack.enter_context(_session(token, pin))
        except pkcs11.PKCS11Error as error:
            raise _unusable(error) from error
        yield session, pin


def _unusable(error: Exception) -> MachineError:
    return MachineError(f"the PKCS#11 token cannot be used: {reason(error)}")


def _module_path(uri: Pkcs11Uri, environment: Mapping[str, str]) -> str:
    given = uri.module_path or (None if uri.module_name else _first(environment, MODULE_VARIABLES))
    if given and not uri.module_name:
        return given
    if uri.module_name is None:
        raise UsageError(
            "no PKCS#11 module is named",
            hint="set ALCOVE_PKCS11_MODULE=/usr/lib/…/module.so, or add ?module-path= to the URI",
        )
    names = [f"{uri.module_name}.so", f"lib{uri.module_name}.so", f"{uri.module_name}-pkcs11.so"]
    for directory in [given] if given else _DIRECTORIES:
        for path in (Path(directory) / name for name in names):
            if path.is_file():
                return str(path)
    raise MachineError(f"there is no PKCS#11 module `{uri.module_name}`", hint="use module-path= with its file")


@contextlib.contextmanager
def _module(path: str) -> Iterator[Any]:
    """A loaded module; the last user finalizes it, so that the next one sees tokens as they are then."""
    if not Path(path).is_file():
        raise MachineError(f"the PKCS#11 module `{path}` is missing", hint="install it, or correct its path")
    with _LOCK:
        try:
            module = pkcs11.lib(path)
        except (pkcs11.PKCS11Error, UnicodeError) as error:
            raise MachineError(
                f"the PKCS#11 module `{path}` cannot be loaded: {reason(error)}",
                hint="is it a module for this machine, and is it configured?",
            ) from error
        _USERS[path] = _USERS.get(path, 0) + 1
    try:
        yield module
    finally:
        with _LOCK:
            _USERS[path] -= 1
            if not _USERS[path]:
                with contextlib.suppress(pkcs11.PKCS11Error):
                    module.finalize()


def _token(module: Any, uri: Pkcs11Uri) -> Any:
    ready = [token for token in module.get_tokens() if token.flags & TokenFlag.TOKEN_INITIALIZED]
    found = [token for token in ready if _matches(module, token, uri)]
    if len(found) == 1:
        return found[0]
    labels = ", ".join(token.label for token in (found or ready)[:8])
    if found:
        raise UsageError("several tokens match", hint=f"name one with token= or serial=; there are: {labels}")
    hint = f"there are: {labels}" if labels else "no token is initialized; is it plugged in, is the module configured?"
    raise MachineError("no PKCS#11 token matches", hint=hint)


def _matches(module: Any, token: Any, uri: Pkcs11Uri) -> bool:
    slot = token.slot
    pairs = (
        (uri.token, token.label),
        (uri.manufacturer, token.manufacturer_id),
        (uri.serial, token.serial.decode(errors="replace").strip("\0 ")),
        (uri.model, token.model),
        (uri.library_manufacturer, module.manufacturer_id),
        (uri.library_description, module.library_description),
        (uri.library_version, ".".join(map(str, module.library_version))),
        (uri.slot_manufacturer, slot.manufacturer_id),
        (uri.slot_description, slot.slot_description),
        (uri.slot_id, slot.slot_id),
    )
    return all(wanted is None or wanted == value for wanted, value in pairs)


def _pin(token: Any, uri: Pkcs11Uri, environment: Mapping[str, str]) -> str | object | None:
    """The PIN, or the sign that the token has a pad of its own, or None when it wants none."""
    if uri.pin_source is not None:
        return _read_pin(Path(uri.pin_source))
    if pin := _first(environment, PIN_VARIABLES):
        return pin
    if token.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
        return PROTECTED_AUTH
    if token.flags & TokenFlag.LOGIN_REQUIRED:
        raise UsageError(
            f"the token `{token.label}` needs a PIN",
            hint="set ALCOVE_PKCS11_PIN, or add pin-source=file:PATH to the URI",
        )
    return None


def _read_pin(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_PIN + 2)
        pin = raw.removesuffix(b"\n").removesuffix(b"\r").decode()
    except OSError as error:
        raise UsageError(f"cannot read the PIN from `{path}`: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"the PIN in `{path}` is not text") from None
    if not 0 < len(pin.encode()) <= MAX_PIN or "\0" in pin or "\n" in pin:
        raise UsageError(f"`{path}` does not hold a PIN", hint="it must hold the PIN alone, on one line")
    return pin


@contextlib.contextmanager
def _session(token: Any, pin: str | object | None) -> Iterator[Any]:
    """A session, logged in. An application logs in once: an inner session shares the login of an outer one."""
    try:
        session = token.open(user_pin=pin)
    except pkcs11.UserAlreadyLoggedIn:
        session = token.open()
    except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
        raise _refused(token, "it did not accept the PIN") from None
    except pkcs11.PinLocked:
        raise _refused(token, "its PIN is locked") from None
    except pkcs11.PinExpired:
        raise _refused(token, "its PIN has expired") from None
    except pkcs11.UserPinNotInitialized:
        raise _refused(token, "it has no user PIN yet") from None
    try:
        yield session
    finally:
        with contextlib.suppress(pkcs11.PKCS11Error):
            session.close()


def _refused(token: Any, why: str) -> AlcoveError:
    return UsageError(
        f"the token `{token.label}` cannot be opened: {why}",
        hint="tokens lock after a few wrong PINs; check it before you try again",
    )


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := environment.get(name))), None)
