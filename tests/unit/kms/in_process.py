"""The service without its transport: signed requests in, answers out, in this thread."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from alcove.attestation.verify import Root
from alcove.kms.call import Answer, Peer, Tools
from alcove.kms.claim import SignedRequest
from alcove.kms.keys import Realm
from alcove.kms.material import KeyPending, make_pair
from alcove.kms.model import kms_model
from alcove.kms.service import Service
from alcove.kms.stores import Store, open_store
from alcove.kms.users import NewUser, add_user
from alcove.sdk.sigv4 import authorization

HOST = "kms.us-east-1.amazonaws.com"
REGIONS = ("us-east-1", "eu-west-1")
PEER = Peer("192.0.2.1", "test", secure=True)
slow_pair = cache(make_pair)  # RSA keys take long, and any one will do here


@dataclass
class InProcess:
    """A service on a store of its own, and its administrator."""

    service: Service
    store: Store
    admin: NewUser
    tools: Tools
    clock: Callable[[], datetime]
    records: list[Any] = field(default_factory=list)

    def send(self, operation: str, body: bytes, user: NewUser | None = None, **headers: str) -> Answer:
        """The answer to a signed request."""
        request = self.signed(operation, body, user, **headers)
        try:
            return self.service.handle(request, PEER)
        except KeyPending as pending:
            return self.service.handle(request, PEER, slow_pair(pending.spec))

    def call(self, operation: str, **members: Any) -> dict[str, Any]:
        """The members of the answer to what must succeed; blobs are base64 both ways."""
        answer = self.send(operation, json.dumps(members).encode())
        assert answer.status == 200, answer.body
        found: dict[str, Any] = json.loads(answer.body or b"{}")
        return found

    def signed(self, operation: str, body: bytes, user: NewUser | None = None, **headers: str) -> SignedRequest:
        """A request, signed as SDKs do."""
        who = user or self.admin
        given = {
            "content-type": "application/x-amz-json-1.1",
            "host": HOST,
            "x-amz-date": self.clock().strftime("%Y%m%dT%H%M%SZ"),
            "x-amz-target": f"TrentService.{operation}",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        signature = authorization(
            given,
            body,
            access_key_id=who.access_key_id,
            secret_access_key=who.secret_access_key,
            region="us-east-1",
            service="kms",
        )
        return SignedRequest("POST", "/", "", (*given.items(), ("authorization", signature)), body)


@contextlib.contextmanager
def in_process(
    directory: Path,
    roots: Sequence[Root] = (),
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    *,
    url: str = "",
) -> Iterator[InProcess]:
    """The service, until the block ends; on a store in the directory, or on another one."""
    with contextlib.closing(open_store(url or f"sqlite:///{directory}/kms.sqlite", directory / "root.key")) as store:
        admin = add_user(store, "admin", admin=True)
        records: list[Any] = []
        realm = Realm(store.account, REGIONS[0])
        tools = Tools(store, realm, secrets.token_bytes, REGIONS, events=records.append)
        service = Service(tools, kms_model(), roots, records.append, clock)
        yield InProcess(service, store, admin, tools, clock, records)
