"""Where a program in the enclave finds the access key that it signs with; asked before each call, so they may change.

    1 a file of JSON, in the form of AWS's credential_process: AccessKeyId, SecretAccessKey, SessionToken
    2 AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
    3 AWS_CONTAINER_CREDENTIALS_FULL_URI on loopback, with AWS_CONTAINER_AUTHORIZATION_TOKEN

A secret is never taken from a command line, which every process of the enclave can read.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from alcove.errors import MachineError, UsageError
from alcove.sdk.endpoint import Credentials
from alcove.sdk.http import AnswerReader

FRESH_SECONDS: Final = 60.0  # how long the answer of an endpoint is used
_MAX_FILE: Final = 65536
_SECONDS: Final = 10.0
_URL = re.compile(r"http://(?P<host>127\.\d+\.\d+\.\d+|localhost|\[::1\])(:(?P<port>\d{1,5}))?(?P<path>/[!-~]*)?")

Source = Callable[[], Credentials]


def source(environment: Mapping[str, str], file: Path | None = None) -> Source:
    """What gives the current access key.

    Args:
        environment: Environment variables.
        file: The file of 1, or None.

    Raises:
        UsageError: There is none of the three.
    """
    if file is not None:
        return lambda: from_file(file)
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        fixed = Credentials(key, secret, environment.get("AWS_SESSION_TOKEN") or None)
        return lambda: fixed
    url = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    if url:
        return _Endpoint(url, environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", ""))
    raise UsageError(
        "there are no credentials",
        hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_CONTAINER_CREDENTIALS_FULL_URI, or name a file",
    )


def from_file(file: Path) -> Credentials:
    """The access key in a file, as it is now; raises MachineError."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_FILE)
    except OSError as error:
        raise MachineError(f"the credentials in {file} cannot be read: {error.strerror}") from None
    return _parse(data, str(file))


class _Endpoint:
    """The access key that an endpoint gives, kept for a minute."""

    def __init__(self, url: str, token: str) -> None:
        found = _URL.fullmatch(url)
        if found is None:
            raise UsageError(f"AWS_CONTAINER_CREDENTIALS_FULL_URI is not on this enclave's loopback: {url}")
        self._host, self._url = found["host"], url
        self._address = (found["host"].strip("[]"), int(found["port"] or 80))
        lines = [f"GET {found['path'] or '/'} HTTP/1.1", f"host: {found['host']}", "connection: close"]
        if token:
            if not token.isprintable() or not token.isascii():
                raise UsageError("AWS_CONTAINER_AUTHORIZATION_TOKEN has characters that cannot be sent")
            lines.append(f"authorization: {token}")
        self._request = ("\r\n".join(lines) + "\r\n\r\n").encode()
        self._lock = threading.Lock()
        self._kept: tuple[float, Credentials] | None = None

    def __call__(self) -> Credentials:
        with self._lock:
            now = time.monotonic()
            if self._kept is None or now - self._kept[0] > FRESH_SECONDS:
                self._kept = now, self._fetch()
            return self._kept[1]

    def _fetch(self) -> Credentials:
        reader = AnswerReader()
        try:
            with socket.create_connection(self._address, timeout=_SECONDS) as stream:
                stream.sendall(self._request)
                while (answer := reader.receive(stream.recv(65536))) is None:
                    pass
        except OSError as error:
            raise MachineError(f"{self._url} gives no credentials: {error.strerror or error}") from None
        if answer.status != 200:
            raise MachineError(f"{self._url} gives no credentials: it answers {answer.status}")
        return _parse(answer.body, self._url)


def _parse(data: bytes, where: str) -> Credentials:
    try:
        found: Any = json.loads(data)
        key, secret = found["AccessKeyId"], found["SecretAccessKey"]
        token = found.get("SessionToken") or found.get("Token")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        key = None
    if not all(isinstance(text, str) and text for text in (key, key and secret)) or not isinstance(token, str | None):
        raise MachineError(f"{where} has no AccessKeyId and SecretAccessKey in JSON")
    return Credentials(key, secret, token)
