"""Reads what a source names elsewhere, an https URL or an object in S3: bounded in size and in time."""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from alcove.errors import InputError, UsageError

MAX_OBJECT: Final = 1 << 20
FETCH_SECONDS: Final = 30.0  # for the whole, and for each wait
_CHUNK: Final = 16384


def https(url: str, ca_file: str | None = None) -> bytes:
    """What is behind an https URL; redirections stay with https.

    Args:
        url: A query in it is not told to anybody: signed URLs have their secret there.
        ca_file: PEM certificates that the server is trusted by; None for the system's.

    Raises:
        UsageError: It is no such URL, or the file is none.
        InputError: It cannot be had, is too large, or takes too long.
    """
    said = _said(url)
    if not url.startswith("https://"):
        raise UsageError(f"{said} is not an https URL")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise UsageError(f"{ca_file} cannot be used: {error.strerror or error}") from None
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Careful())
    deadline = time.monotonic() + FETCH_SECONDS
    try:
        with opener.open(url, timeout=FETCH_SECONDS) as answer:
            return bounded(answer.read1, said, deadline)
    except urllib.error.HTTPError as error:
        raise InputError(f"{said} cannot be had: status {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{said} cannot be had: {reason}") from None


def s3(uri: str) -> bytes:
    """An object, `s3://BUCKET/KEY`, with the credentials and the region that AWS's SDKs find.

    Raises:
        UsageError: The URI is none.
        InputError: It cannot be had, is too large, or takes too long.
    """
    from botocore.config import Config  # noqa: PLC0415 - only this source needs it
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    bucket, slash, name = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not slash or not bucket or not name:
        raise UsageError("the source S3 has a uri s3://BUCKET/KEY")
    config = Config(
        connect_timeout=FETCH_SECONDS / 3, read_timeout=FETCH_SECONDS / 3, retries={"total_max_attempts": 2}
    )
    deadline = time.monotonic() + FETCH_SECONDS
    try:
        body = Session().create_client("s3", config=config).get_object(Bucket=bucket, Key=name)["Body"]
        return bounded(body.read, uri, deadline)
    except ClientError as error:
        said = error.response.get("Error", {})
        raise InputError(f"{uri} cannot be had: {said.get('Code')}: {said.get('Message')}") from None
    except (BotoCoreError, HTTPClientError, ValueError, OSError) as error:
        raise InputError(f"{uri} cannot be had: {error}") from None


def bounded(read: Callable[[int], bytes], said: str, deadline: float) -> bytes:
    """Everything that can be read, if it is little enough and comes soon enough.

    Args:
        read: Gives some bytes, none at the end.
        said: What it is, for the message.
        deadline: By time.monotonic.

    Raises:
        InputError: It is not.
    """
    whole = bytearray()
    while data := read(_CHUNK):
        whole += data
        if len(whole) > MAX_OBJECT:
            raise InputError(f"{said} is larger than {MAX_OBJECT} bytes")
        if time.monotonic() > deadline:
            raise InputError(f"{said} takes longer than {FETCH_SECONDS:.0f} s")
    return bytes(whole)


class _Careful(urllib.request.HTTPRedirectHandler):
    """Follows redirections to https alone: on another way anybody could give another key."""

    def redirect_request(  # noqa: PLR0917 - urllib's signature
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        """See `urllib.request.HTTPRedirectHandler`."""
        if not newurl.startswith("https://"):
            raise ValueError("it leads away from https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _said(url: str) -> str:
    """A URL without what may be secret."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"[:120]
    except ValueError:
        return "the URL"
