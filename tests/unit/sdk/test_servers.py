from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from alcove.attestation import PCR, parse_document, verify
from alcove.errors import MachineError, UsageError
from alcove.sdk import credentials
from alcove.sdk.endpoint import Credentials, Endpoint
from alcove.sdk.nsm import attest
from alcove.sdk.servers import http_server
from alcove.sdk.servers.attestation import AttestationServer
from alcove.sdk.servers.http_server import HttpServer
from alcove.sdk.servers.kms_proxy import KmsProxy
from alcove.sdk.servers.request import Request, Response
from alcove.sdk.tls import TcpTransport
from alcove.testing import LocalKms, SimulatedNSM

LOCAL = Credentials("LOCALKEY", "local secret")
REMOTE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def local_client(url: str, key: Credentials = LOCAL, region: str = "us-east-1") -> Any:
    return boto3.Session(key.access_key_id, key.secret_access_key, key.session_token, region_name=region).client(
        "kms", endpoint_url=url, config=Config(retries={"max_attempts": 0})
    )


@pytest.fixture
def proxy(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> Iterator[str]:
    """The URL of a proxy before the KMS; its callers have another access key than it has."""
    with HttpServer(KmsProxy(alcove_kms.endpoint, lambda: LOCAL)).serving() as url:
        yield url


def test_a_program_that_knows_nothing_gets_its_plaintext(
    proxy: str, alcove_nsm: SimulatedNSM, alcove_kms: LocalKms
) -> None:
    """A plain SDK with the proxy as its endpoint: data key, decryption, key pair, in the usual members."""
    key = alcove_kms.create_key({"PCR0": alcove_nsm.pcr(0)})
    client = local_client(proxy)
    made = client.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext={"a": "b"})
    assert len(made["Plaintext"]) == 32
    opened = client.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext={"a": "b"})
    assert (opened["Plaintext"], opened["KeyId"]) == (made["Plaintext"], key)
    assert "CiphertextForRecipient" not in opened
    pair = client.generate_data_key_pair(KeyId=key, KeyPairSpec="ECC_NIST_P256")
    assert pair["PrivateKeyPlaintext"].startswith(b"\x30")
    record = alcove_kms.records()[-1]
    assert record["userIdentity"]["accessKeyId"] == alcove_kms.environment["AWS_ACCESS_KEY_ID"]
    assert record["additionalEventData"]["recipient"]["attestationDocumentModuleId"] == alcove_nsm.enclave_id


def test_shared_secrets_and_random_bytes_come_in_their_own_members(
    proxy: str, alcove_nsm: SimulatedNSM, alcove_kms: LocalKms
) -> None:
    """The two operations whose plaintext is neither a data key's nor a ciphertext's."""
    pcrs = {"PCR0": alcove_nsm.pcr(0)}
    agreement = alcove_kms.create_key(pcrs, KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")
    theirs = load_der_public_key(alcove_kms.admin.get_public_key(KeyId=agreement)["PublicKey"])
    assert isinstance(theirs, ec.EllipticCurvePublicKey)
    mine = ec.generate_private_key(ec.SECP256R1())
    spki = mine.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    client = local_client(proxy)
    derived = client.derive_shared_secret(KeyId=agreement, KeyAgreementAlgorithm="ECDH", PublicKey=spki)
    assert derived["SharedSecret"] == mine.exchange(ec.ECDH(), theirs)
    assert len(client.generate_random(NumberOfBytes=77)["Plaintext"]) == 77


def test_other_calls_and_refusals_pass_as_they_are(proxy: str, alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """DescribeKey works without a document, and KMS's own errors reach the program."""
    key = alcove_kms.create_key({"PCR0": bytes([9]) * 48})
    with pytest.raises(ClientError, match="RecipientAttestation:PCR0"):
        local_client(proxy).generate_data_key(KeyId=key, KeySpec="AES_256")
    with pytest.raises(ClientError, match="AccessDenied"):
        local_client(proxy).list_keys()
    assert "recipient" not in (alcove_kms.records()[-1].get("additionalEventData") or {})


@pytest.mark.parametrize(
    ("key", "region"),
    [
        (Credentials("LOCALKEY", "wrong"), "us-east-1"),
        (Credentials("OTHER", "local secret"), "us-east-1"),
        (Credentials("LOCALKEY", "local secret", "token"), "us-east-1"),
        (LOCAL, "eu-west-1"),
    ],
)
def test_only_its_callers_are_signed_for(proxy: str, alcove_kms: LocalKms, key: Credentials, region: str) -> None:
    """Another secret, key, token or Region is refused, and nothing reaches KMS."""
    before = len(alcove_kms.records())
    with pytest.raises(ClientError, match="InvalidSignature"):
        local_client(proxy, key, region).generate_random(NumberOfBytes=1)
    assert len(alcove_kms.records()) == before


def test_a_changed_body_and_unsigned_calls_are_refused(proxy: str, alcove_kms: LocalKms) -> None:
    """The signature covers the body; without one there is no answer from KMS."""
    client = local_client(proxy)

    client.meta.events.register_last(
        "before-send.kms", lambda request, **_: setattr(request, "body", b'{"NumberOfBytes": 2}')
    )
    with pytest.raises(ClientError, match="InvalidSignature"):
        client.generate_random(NumberOfBytes=1)
    answer = call(proxy, "POST", "/", b"{}", {"x-amz-target": "TrentService.GenerateRandom"})
    assert (answer[0], json.loads(answer[2])["__type"]) == (400, "InvalidSignatureException")
    for method, path, target in (
        ("GET", "/", "TrentService.X"),
        ("POST", "/x", "TrentService.X"),
        ("POST", "/", "S3"),
        ("POST", "/", "TrentService.\xe9"),
    ):
        answer = call(proxy, method, path, b"", {"x-amz-target": target})
        assert json.loads(answer[2])["__type"] == "UnknownOperationException"


def test_keys_can_be_named(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """An answer from a key that is not one of the proxy's is refused, also without a KeyId in the call."""
    pcrs = {"PCR0": alcove_nsm.pcr(0)}
    mine, other = alcove_kms.create_key(pcrs), alcove_kms.create_key(pcrs)
    with HttpServer(KmsProxy(alcove_kms.endpoint, lambda: LOCAL, keys=[mine])).serving() as url:
        client = local_client(url)
        for key, fine in ((mine, True), (other, False)):
            blob = base64.b64decode(alcove_kms.encrypt(key, b"secret"))
            if fine:
                assert client.decrypt(CiphertextBlob=blob)["Plaintext"] == b"secret"
                continue
            with pytest.raises(ClientError, match="not one of those that are allowed"):
                client.decrypt(CiphertextBlob=blob)


def test_a_kms_that_is_away_is_a_503(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """So that SDKs try again; the proxy goes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        transport = TcpTransport(*taken.getsockname())
    away = Endpoint("us-east-1", LOCAL, "localhost", ca_file=str(alcove_kms.ca_file), transport=transport)
    with HttpServer(KmsProxy(away, lambda: LOCAL)).serving() as url:
        for _ in range(2):
            with pytest.raises(ClientError, match="ServiceUnavailable") as caught:
                local_client(url).generate_random(NumberOfBytes=1)
            assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


def call(
    url: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, str, bytes]:
    """Status, content type and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", int(urlsplit(url).port or 0), timeout=30)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.getheader("content-type", ""), answer.read()


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(urlsplit(url).port or 0)), timeout=30)


@pytest.fixture
def documents(alcove_nsm: SimulatedNSM) -> Iterator[str]:
    """The URL of an attestation server."""
    with HttpServer(AttestationServer(attest)).serving() as url:
        yield url


JSON = {"content-type": "application/json"}


def test_documents_by_get_and_post(documents: str, alcove_nsm: SimulatedNSM) -> None:
    """Nonce and user data in the query; with a public key in PEM, which becomes its SubjectPublicKeyInfo, by POST."""
    status, kind, document = call(documents, "GET", "/v1/attestation?nonce=0102&user_data=ff")
    assert (status, kind) == (200, "application/cbor")
    policy, now = PCR(0, alcove_nsm.pcr(0)), datetime.now(UTC)
    verified = verify(document, roots=[alcove_nsm.root], policy=policy, at=now, nonce=b"\x01\x02")
    assert verified.document.user_data == b"\xff"
    public = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for given in (pem, base64.b64encode(der).decode()):
        body = json.dumps({"nonce": base64.b64encode(b"n").decode(), "public_key": given, "user_data": None})
        status, _, document = call(documents, "POST", "/v1/attestation", body.encode(), JSON)
        assert (status, parse_document(document).public_key) == (200, der)


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (404, ("GET", "/", b"", {})),
        (405, ("PUT", "/v1/attestation", b"", {})),
        (400, ("GET", "/v1/attestation?nonce=xx", b"", {})),
        (400, ("GET", "/v1/attestation?nonce=" + "00" * 1025, b"", {})),
        (400, ("GET", "/v1/attestation?public_key=00", b"", {})),
        (400, ("GET", "/v1/attestation?nonce=00&nonce=01", b"", {})),
        (400, ("POST", "/v1/attestation", b"{}", {})),
        (400, ("POST", "/v1/attestation", b"[]", JSON)),
        (400, ("POST", "/v1/attestation", b"[" * 100_000, JSON)),
        (400, ("POST", "/v1/attestation", b'{"other": "QQ=="}', JSON)),
        (400, ("POST", "/v1/attestation", b'{"nonce": 1}', JSON)),
        (400, ("POST", "/v1/attestation", b'{"nonce": "*"}', JSON)),
        (403, ("GET", "/v1/attestation", b"", {"host": "evil.example"})),
    ],
)
def test_bad_requests_for_documents(documents: str, status: int, asked: tuple[str, str, bytes, dict[str, str]]) -> None:
    """Each has its status and one line; a public key is not taken from a query, nor from a page's form."""
    answer = call(documents, *asked)
    assert answer[0] == status
    assert answer[2].count(b"\n") == 1


def test_hostile_peers_do_not_take_a_server_down(documents: str) -> None:
    """Garbage, an early close, a flood of connections and one that sends nothing: the next one is served."""
    for data in (b"\x00" * 1000, b"GET", b"", b"POST /v1/attestation HTTP/1.1\r\ncontent-length: 99\r\n\r\nx"):
        with connected(documents) as stream:
            stream.sendall(data)
    silent = [connected(documents) for _ in range(2 * http_server.MAX_CONNECTIONS)]
    for stream in silent:
        stream.close()
    assert call(documents, "GET", "/v1/attestation")[0] == 200


def test_a_slow_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that does not finish its request loses its connection, and gives its place back."""
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.2)
    with HttpServer(lambda _: Response(200, b"", "text/plain")).serving() as url:
        with connected(url) as slow:
            slow.sendall(b"GET / HT")
            assert slow.recv(1) == b""
        assert call(url, "GET", "/")[0] == 200


def test_connections_are_kept_and_100_continue_is_said(documents: str) -> None:
    """Two requests on one connection; a peer that waits for 100 Continue gets it (curl sends it with long bodies)."""
    seen: list[Request] = []

    def remember(request: Request) -> Response:
        seen.append(request)
        return Response(200, b"ok", "text/plain")

    with HttpServer(remember).serving() as url, connected(url) as stream:
        for _ in range(2):
            stream.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert stream.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            stream.sendall(b"hi")
            assert stream.recv(1000).endswith(b"ok")
    assert [request.body for request in seen] == [b"hi", b"hi"]


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "localhost", "x"])
def test_only_loopback_is_served(host: str) -> None:
    """What is for the enclave alone is not offered elsewhere."""
    with pytest.raises(UsageError, match="loopback"):
        HttpServer(lambda _: Response(200, b"", ""), host=host)


def test_a_port_that_is_taken_is_said() -> None:
    """One line, with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(MachineError, match="cannot listen"):
        HttpServer(lambda _: Response(200, b"", ""), port=taken.getsockname()[1])


def test_credentials_come_from_three_places(tmp_path: Path) -> None:
    """A file, which is read again; the environment; an endpoint on loopback with its token."""
    file = tmp_path / "c.json"
    file.write_text('{"AccessKeyId": "a", "SecretAccessKey": "b"}')
    from_file = credentials.source({}, file)
    assert from_file() == Credentials("a", "b")
    file.write_text('{"AccessKeyId": "c", "SecretAccessKey": "d", "SessionToken": "e"}')
    assert from_file() == Credentials("c", "d", "e")
    assert credentials.source({REMOTE[0]: "k", REMOTE[1]: "s"})() == Credentials("k", "s")

    def give(request: Request) -> Response:
        assert (request.target, request.headers["authorization"]) == ("/creds?x=1", "token")
        return Response(200, b'{"AccessKeyId": "f", "SecretAccessKey": "g", "Token": "h"}', "application/json")

    with HttpServer(give).serving() as url:
        variables = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/creds?x=1"}
        assert credentials.source(variables | {"AWS_CONTAINER_AUTHORIZATION_TOKEN": "token"})() == Credentials(
            "f", "g", "h"
        )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"AccessKeyId": 1, "SecretAccessKey": "b"}', "[" * 9999])
def test_bad_credentials_are_one_line_without_a_secret(tmp_path: Path, text: str) -> None:
    """What cannot be used is named by its place alone."""
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(MachineError, match=r"c\.json has no AccessKeyId"):
        credentials.source({}, tmp_path / "c.json")()
    with pytest.raises(MachineError, match="cannot be read"):
        credentials.source({}, tmp_path / "none")()
    with pytest.raises(UsageError, match="no credentials"):
        credentials.source({})
    with pytest.raises(UsageError, match="loopback"):
        credentials.source({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.2/x"})


WRAPPER = """
import sys
from alcove.cli import inside
from alcove.sdk import entropy
from alcove.testing import SimulatedNSM
entropy.seed = lambda module: None
with SimulatedNSM():
    inside.main()
"""


def program(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """alcove-enclave with a simulated module, with a real argument list and a real environment."""
    return subprocess.Popen(
        [sys.executable, "-c", WRAPPER, *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SHOW = "import json, os; print(json.dumps({n: v for n, v in os.environ.items() if n.startswith('AWS_')}))"


def test_a_program_below_the_proxy_has_a_key_of_its_own(alcove_kms: LocalKms) -> None:
    """Its environment leads to the proxy and has none of the proxy's credentials; its status is the proxy's."""
    own = {"AWS_ACCESS_KEY_ID": "REAL", "AWS_SECRET_ACCESS_KEY": "real secret", "AWS_SESSION_TOKEN": "real token"}
    flags = ("--ca-file", str(alcove_kms.ca_file), "--region", "eu-west-1")
    with program("kms-proxy", *flags, "--", sys.executable, "-c", f"{SHOW}; exit(7)", "-x", **own) as running:
        said, errors = running.communicate(timeout=60)
    assert running.returncode == 7, errors
    seen = json.loads(said)
    assert seen["AWS_ENDPOINT_URL_KMS"].startswith("http://127.0.0.1:")
    assert (seen["AWS_REGION"], seen["AWS_DEFAULT_REGION"]) == ("eu-west-1", "eu-west-1")
    assert seen["AWS_ACCESS_KEY_ID"].startswith("LOCAL")
    assert "real" not in said.lower()


CALL = """
import boto3, sys
print(len(boto3.client("kms").generate_random(NumberOfBytes=9)["Plaintext"]))
"""


def test_the_environment_names_the_kms(alcove_kms: LocalKms) -> None:
    """AWS_ENDPOINT_URL_KMS and AWS_CA_BUNDLE name the KMS to the proxy; one that does not trust us says so."""
    flags = ("--connect", f"127.0.0.1:{alcove_kms.port}")
    with program("kms-proxy", *flags, "--", sys.executable, "-c", CALL, **alcove_kms.environment) as running:
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "attestation document" in errors
    assert alcove_kms.records()[-1]["eventName"] == "GenerateRandom"


def test_signals_reach_the_program(alcove_kms: LocalKms) -> None:
    """SIGTERM is handed on, and the program's answer to it is the status."""
    handler = "import signal, sys; signal.signal(15, lambda *_: sys.exit(9)); print('up', flush=True); signal.pause()"
    own = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    flags = ("--ca-file", str(alcove_kms.ca_file))
    with program("kms-proxy", *flags, "--", sys.executable, "-c", handler, **own) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 9


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["kms-proxy"], "there are no credentials"),
        (["kms-proxy", "--credentials", "/none", "--ca-file", "/none"], "/none: no usable certificates"),
        (["kms-proxy", "--credentials", "/none", "--endpoint", "https://x"], "not a host name"),
        (["kms-proxy", "--credentials", "/none", "--connect", "x"], "--connect is HOST:PORT"),
        (["kms-proxy", "--credentials", "/none", "--", "/none/program"], "/none/program cannot be run"),
        (["kms-proxy", "--credentials", "/none", "--port", "65536"], "there is no TCP port 65536"),
        (["attestation-server", "--port", "-1"], "there is no TCP port -1"),
    ],
)
def test_bad_use_is_one_line(arguments: list[str], expected: str) -> None:
    """One clear line and a status, no traceback."""
    with program(*arguments) as running:
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert expected in errors.splitlines()[-2 if "hint:" in errors else -1]
    assert "Traceback" not in errors


@pytest.mark.parametrize("command", ["kms-proxy", "attestation-server"])
def test_outside_of_an_enclave_it_says_so(command: str) -> None:
    """The program as it is installed, here, where there is no device."""
    done = subprocess.run(
        [Path(sys.executable).parent / "alcove-enclave", command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("alcove-enclave: error: not in an enclave")
    assert "alcove.testing" in done.stderr


def test_the_attestation_server_says_where_it_is() -> None:
    """It serves at the address that it prints, and SIGTERM ends it with status 0."""
    with program("attestation-server", "--port", "0") as running:
        assert running.stderr is not None
        url = running.stderr.readline().split()[-1]
        assert call(url, "GET", f"{urlsplit(url).path}?nonce=00")[0] == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 0
