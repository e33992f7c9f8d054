"""Whatever strangers send, a server keeps none of it: caches are bounded in bytes, not in entries alone."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.kms.in_process import PEER, InProcess, in_process

from alcove.kms.claim import SignedRequest
from alcove.kms.policy import decisions, document
from alcove.kms.policy.document import PolicyDocument, parse_policy
from alcove.kms.policy.evaluate import Access
from alcove.kms.policy.principals import Caller

pytestmark = pytest.mark.slow

BIG = 40_000  # characters; a head may have 64 KiB
MANY = 300
MOST = 2_000_000  # bytes that may stay; a cache of them would keep 12 MB


def junk(number: int, size: int = BIG) -> str:
    return f"{number:08d}" * (size // 8)


def names(number: int) -> str:
    """A great many short names, in order."""
    return ";".join([f"{number:04d}{i:05d}" for i in range(BIG // 10)])


def headers(kms: InProcess, **changed: str) -> dict[str, str]:
    found = dict(kms.signed("DescribeKey", b"{}").headers)
    return found | {name.replace("_", "-"): value for name, value in changed.items()}


def authorization(kms: InProcess, credential: str = "", signed: str = "", signature: str = "0" * 64) -> dict[str, str]:
    day = kms.clock().strftime("%Y%m%d")
    credential = credential or f"{kms.admin.access_key_id}/{day}/us-east-1/kms/aws4_request"
    signed = signed or "content-type;host;x-amz-date;x-amz-target"
    text = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, Signature={signature}"
    return headers(kms, authorization=text)


CASES: dict[str, Callable[[InProcess, int], dict[str, str]]] = {
    "credential": lambda kms, n: authorization(
        kms, f"{junk(n)}/{kms.clock().strftime('%Y%m%d')}/us-east-1/kms/aws4_request"
    ),
    "region": lambda kms, n: authorization(kms, f"AKIA/{kms.clock().strftime('%Y%m%d')}/{junk(n)}/kms/aws4_request"),
    "many signed headers": lambda kms, n: authorization(kms, signed=names(n)),
    "a long signed header": lambda kms, n: authorization(kms, signed=junk(n)),
    "no authorization": lambda kms, n: headers(kms, authorization=junk(n)),
    "date": lambda kms, n: headers(kms, x_amz_date=junk(n)),
    "target": lambda kms, n: headers(kms, x_amz_target=f"TrentService.{junk(n)}"),
    "token": lambda kms, n: headers(kms, x_amz_security_token=junk(n)),
    "a header's name": lambda kms, n: headers(kms) | {junk(n): "x"},
    "a header's value": lambda kms, n: headers(kms, user_agent=junk(n)),
    "content hash": lambda kms, n: headers(kms, x_amz_content_sha256=junk(n)),
}


@pytest.mark.parametrize("name", CASES)
def test_strangers_leave_nothing(tmp_path: Path, name: str) -> None:
    """Large heads, each different, with one part that is as long as can be, and no right signature."""
    with in_process(tmp_path) as kms:

        def send(numbers: range) -> None:
            for number in numbers:
                found = CASES[name](kms, number)
                request = SignedRequest("POST", "/", "", tuple(found.items()), b"{}")
                assert kms.service.handle(request, PEER).status == 400
            kms.records.clear()
            gc.collect()

        send(range(20))
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            send(range(20, 20 + MANY))
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < MOST


def large(number: int) -> PolicyDocument:
    """A policy as large as one can be, and unlike all others."""
    statement = {"Effect": "Allow", "Principal": "*", "Action": ["kms:*"] * 3500, "Resource": "*"}
    return parse_policy(json.dumps({"Statement": [{"Sid": f"{number}", **statement}]}))


def test_decisions_keep_large_policies_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of decisions keeps no more policies than it may, in characters of them."""
    monkeypatch.setattr(decisions, "MAX_TEXT", 1 << 20)
    remembered, caller = decisions.Decisions(), Caller("arn:aws:iam::111122223333:user/a", "111122223333", "AIDA")
    access = Access(caller, "kms:Decrypt", "arn:aws:kms:us-east-1:111122223333:key/k", {})
    tracemalloc.start()
    try:
        for number in range(300):
            assert remembered.decide(access, large(number), ()).allowed
        document._long.cache_clear()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown < 16_000_000


def test_large_policies_are_kept_in_bounds() -> None:
    """Whoever may change policies makes large ones, again and again: a few hundred of them stay, not thousands."""
    tracemalloc.start()
    try:
        for number in range(600):
            large(number)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown < 80_000_000
