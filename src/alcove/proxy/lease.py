"""Short-lived credentials, in the form that AWS's SDKs take them from a container's endpoint.

Core: values in, bytes out.

    {"AccessKeyId", "SecretAccessKey", "Token", "Expiration"}    botocore's ContainerProvider, and every SDK's like it
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field
from typing import Final

PORT: Final = 9040  # the parent's vsock port
PATH: Final = "/credentials"


@dataclass(frozen=True, slots=True)
class Lease:
    """An access key and when it ends; its secrets are not in its text."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str | None = field(repr=False)
    expires: dt.datetime

    def left(self, now: dt.datetime) -> float:
        """Seconds until it ends."""
        return (self.expires - now).total_seconds()

    def to_json(self) -> bytes:
        """As an SDK takes it."""
        expires = self.expires.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return json.dumps(
            {
                "AccessKeyId": self.access_key_id,
                "SecretAccessKey": self.secret_access_key,
                "Token": self.token or "",
                "Expiration": expires,
            }
        ).encode()
