"""What operators see of a server, and what clients that mean no good can do to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kms.server_harness import RunningKms, client, config, refused, running

from alcove.kms import connection, worker
from alcove.kms import http as kms_http
from alcove.kms.audit import AuditLog
from alcove.kms.log import open_log
from alcove.kms.metrics import BOUNDS, Metrics, outcome_of
from alcove.kms.stores import open_store
from alcove.kms.users import add_user

WORDS = [b"POST", b" ", b"/", b"HTTP/1.1", b"\r\n", b"Content-Length: ", b"5", b":", b"\0", b"x"]
HEAD = b"POST / HTTP/1.1\r\nHost: kms\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    directory = tmp_path_factory.mktemp("kms")
    with running(config(directory, log=open_log(str(directory / "log")))) as service:
        yield service


def page(kms: RunningKms, path: str) -> tuple[int, str]:
    host, port = kms.url.removeprefix("http://").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=30)) as there:
        there.request("GET", path)
        answer = there.getresponse()
        return answer.status, answer.read().decode()


def samples(kms: RunningKms) -> dict[str, float]:
    status, text = page(kms, "/metrics")
    assert status == 200
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'\w+\{\w+="[^"]*"(,\w+="[^"]*")*\}', name) for name, _, _ in lines)
    return {name: float(value) for name, _, value in lines}


def talk(kms: RunningKms, data: bytes, *, then: bool = True) -> bytes:
    """What the server says to some bytes, until it ends the connection."""
    host, port = kms.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as there:
        with contextlib.suppress(ConnectionError):  # it may have refused before everything was sent
            there.sendall(data)
            if then:
                there.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionError):
            while chunk := there.recv(65_536):
                found += chunk
        return found


def test_metrics_count_by_operation_and_outcome(kms: RunningKms) -> None:
    """Each answer once, in the histogram as well; what is no operation is `other`, whatever it calls itself."""
    before = samples(kms)
    made = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    for _ in range(3):
        kms.admin.encrypt(KeyId=made, Plaintext=b"x")
    with refused("AccessDeniedException"):
        kms.app.encrypt(KeyId=made, Plaintext=b"x")
    with refused("NotFoundException"):
        kms.admin.describe_key(KeyId="alias/none")
    with refused("InvalidSignatureException"):
        client(kms.url, kms.admin_user, secret="wrong").list_keys()
    talk(kms, HEAD + b"X-Amz-Target: TrentService.Nonsense\r\nContent-Length: 0\r\n\r\n")
    after = samples(kms)

    def more(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    def requests(operation: str, outcome: str) -> float:
        return more(f'alcove_kms_requests_total{{operation="{operation}",outcome="{outcome}"}}')

    assert requests("Encrypt", "success") == 3
    assert requests("Encrypt", "denied") == 1
    assert requests("DescribeKey", "invalid") == 1
    assert requests("ListKeys", "unauthenticated") == 1
    assert requests("other", "unauthenticated") == 1
    assert not any("Nonsense" in name for name in after)
    assert more('alcove_kms_request_seconds_count{operation="Encrypt"}') == 4
    assert more('alcove_kms_request_seconds_bucket{operation="Encrypt",le="+Inf"}') == 4
    assert more('alcove_kms_request_seconds_sum{operation="Encrypt"}') > 0


def test_workers_count_together() -> None:
    """What each of them counted is in the sum, and buckets hold what is not longer than their bound."""
    metrics = Metrics(["Encrypt"], 2)
    for number in (0, 1, 1):
        metrics.counter(number)("Encrypt", outcome_of(200, ""), BOUNDS[1])
    text = metrics.exposition().decode()
    assert 'alcove_kms_requests_total{operation="Encrypt",outcome="success"} 3' in text
    assert f'le="{BOUNDS[0]:g}"}} 0' in text
    assert f'le="{BOUNDS[1]:g}"}} 3' in text
    assert 'alcove_kms_request_seconds_count{operation="Encrypt"} 3' in text


def test_health_is_that_of_store_and_log(kms: RunningKms, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 while requests can be served, 503 when they could not be; being alive is another question."""
    assert page(kms, "/health") == (200, '{"status":"healthy"}')
    monkeypatch.setattr(AuditLog, "broken", True)
    assert page(kms, "/health") == (503, '{"status":"unhealthy"}')
    assert page(kms, "/ping")[0] == 200


def test_refusals_are_in_the_log_without_secrets(kms: RunningKms) -> None:
    """One JSON line with the request's id and why; nothing of what the request carried; strangers leave no line."""
    log = kms.config.audit.with_name("log")
    made = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    with pytest.raises(ClientError) as caught:
        kms.app.encrypt(KeyId=made, Plaintext=b"a plaintext that must not be logged")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1]["event"] == "refused"
    assert lines[-1]["request_id"] == caught.value.response["ResponseMetadata"]["RequestId"]
    assert (lines[-1]["operation"], lines[-1]["error"]) == ("Encrypt", "AccessDeniedException")
    assert "no identity-based policy allows" in lines[-1]["because"]
    with refused("InvalidSignatureException"):
        client(kms.url, kms.admin_user, secret="wrong").list_keys()
    assert len(log.read_text().splitlines()) == len(lines)
    assert "must not be logged" not in log.read_text()
    assert kms.app_user.secret_access_key not in log.read_text()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),  # TLS where there is none
        (b"GARBAGE\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
        (HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (CHUNKED + b"zz\r\n", b"400"),
        (HEAD + b"A b: c\r\n\r\n", b"400"),
        (HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n", b"400"),
        (HEAD + b"X: " + b"x" * (2 << 20), b"431"),
        (HEAD + b"X: x\r\n" * 5000 + b"\r\n", b"431"),
        (CHUNKED + b"0\r\nX: " + b"x" * (2 << 20), b"431"),
        (CHUNKED + b"0\r\n" + b"X: x\r\n" * 500_000 + b"\r\n", b"431"),
        (CHUNKED + b"1;" + b"x" * (2 << 20), b"431"),
        (HEAD + b"Content-Length: 99999999\r\n\r\n" + bytes(3 << 20), b"413"),
        (CHUNKED + b"10000\r\n" + (b"x" * 65_536 + b"\r\n10000\r\n") * 20, b"413"),
    ],
)
def test_what_is_no_request_is_answered_and_ended(kms: RunningKms, data: bytes, status: bytes) -> None:
    """One answer, or the end of the connection; the next client is served."""
    said = talk(kms, data, then=False)
    assert said == b"" or said.startswith(b"HTTP/1.1 " + status), said[:200]
    assert said.count(b"HTTP/1.1 ") <= 1
    assert page(kms, "/ping")[0] == 200


def test_what_follows_a_body_is_no_header(kms: RunningKms) -> None:
    """A trailer is read over: nothing that decides about a request can come after it."""
    said = talk(kms, CHUNKED + b"2\r\n{}\r\n0\r\nAuthorization: x\r\nConnection: close\r\n\r\n")
    assert json.loads(said.rpartition(b"\r\n\r\n")[2])["__type"] == "MissingAuthenticationTokenException"


def test_pipelined_requests_are_answered_in_turn(kms: RunningKms) -> None:
    """All of them, in order, however they are cut; the last one's wish to close is met."""
    one = b"GET /ping HTTP/1.1\r\nHost: kms\r\n\r\n"
    other = HEAD + b"Content-Length: 2\r\n\r\n{}"
    last = b"GET /ping HTTP/1.1\r\nHost: kms\r\nConnection: close\r\n\r\n"
    assert talk(kms, one * 2000 + last, then=False).count(b"HTTP/1.1 200 OK") == 2001
    said = talk(kms, (one + other) * 50 + last, then=False)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", said)
    assert statuses == [b"200", b"400"] * 50 + [b"200"]
    assert said.lower().count(b"connection: close") == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([b"POST", b" ", b"/", b"HTTP/1.1", b"\r\n", b"Content-Length: ", b"5", b":", b"\0", b"x"]))
)
def test_any_bytes_get_an_answer_or_an_end(kms: RunningKms, parts: list[bytes]) -> None:
    """Whatever is sent, the connection ends when the client has nothing more to say, and the server goes on."""
    said = talk(kms, b"".join(parts))
    assert said == b"" or said.startswith(b"HTTP/1.1 ")
    assert page(kms, "/ping")[0] == 200


def test_a_key_that_cannot_be_made_is_a_fault(kms: RunningKms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it for ever, and the operator is told."""

    def fail(_spec: str) -> bytes:
        raise MemoryError

    monkeypatch.setattr(kms_http, "make_pair", fail)
    with pytest.raises(ClientError) as caught:
        kms.admin.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500
    told = json.loads(kms.config.audit.with_name("log").read_text().splitlines()[-1])
    assert (told["event"], told["operation"], told["error"][:11]) == ("fault", "CreateKey", "MemoryError")


def test_a_client_has_its_address_on_every_listener(tmp_path: Path) -> None:
    """IPv4 through a socket of IPv6 is IPv4 still: a policy about networks of it would miss the client otherwise."""
    network = {"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}
    deny = {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": network}
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}, deny]}
    with running(config(tmp_path, host="::")) as service:
        port = service.url.rpartition(":")[2]
        with contextlib.closing(open_store(service.config.store, service.config.root_key)) as store:
            user = add_user(store, "elsewhere", policies=[json.dumps(policy)])
        client(f"http://[::1]:{port}", user).list_keys()
        with refused("AccessDeniedException"):
            client(f"http://127.0.0.1:{port}", user).list_keys()
        assert [record["sourceIPAddress"] for record in service.records()] == ["::1", "127.0.0.1"]


def take_nothing(greedy: socket.socket) -> None:
    """Asks for ever, and reads no answer."""
    while True:
        greedy.sendall(b"GET /metrics HTTP/1.1\r\nHost: kms\r\n\r\n" * 1000)


def test_slow_clients_are_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a request, no request, and an answer that nobody takes: none of them holds a connection for ever."""
    monkeypatch.setattr(connection, "REQUEST_TIME", 0.2)
    monkeypatch.setattr(connection, "KEEP_ALIVE", 0.2)
    monkeypatch.setattr(worker, "SWEEP_INTERVAL", 0.05)
    with running(config(tmp_path)) as service:
        assert talk(service, HEAD, then=False).startswith(b"HTTP/1.1 408 ")
        assert talk(service, HEAD + b"Content-Length: 10\r\n\r\nabc", then=False).startswith(b"HTTP/1.1 408 ")
        assert talk(service, b"", then=False) == b""
        assert talk(service, b"GET /ping HTTP/1.1\r\nHost: kms\r\n\r\n", then=False).endswith(b'healthy"}')
        host, port = service.url.removeprefix("http://").split(":")
        with (
            socket.create_connection((host, int(port)), timeout=30) as greedy,
            pytest.raises(ConnectionError),  # ended by the server, with what it had not taken yet
        ):
            take_nothing(greedy)
        assert page(service, "/ping")[0] == 200
