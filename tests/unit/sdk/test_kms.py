from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from alcove.codec import cbor
from alcove.errors import MachineError, ProtocolError, UsageError
from alcove.sdk.errors import EnvelopeError, KmsError
from alcove.sdk.kms import UNSAFE_ANY_KEY, AttestedKms, Credentials, default_host

ARN = "arn:aws:kms:us-east-1:111122223333:key/0123"
NOW = 1_700_000_000
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


class Attester:
    """Makes unsigned documents with the fields that the client reads, and remembers the keys."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []

    def attestation(self, *, public_key: bytes | None = None) -> bytes:
        """A document."""
        self.keys.append(public_key or b"")
        payload = cbor.encode({"timestamp": NOW * 1000, "public_key": public_key})
        return cbor.encode([b"", {}, payload, b""])


@dataclass
class Server:
    """A TLS server on loopback, which is the transport too; `reply` makes the members of each answer."""

    certificate: Path
    key: Path
    seal: Callable[..., bytes]
    reply: Callable[[Server, dict[str, Any]], tuple[int, Any]] = lambda server, request: (200, server.good(request))
    plaintext: bytes = b"the secret"
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)

    def connect(self) -> socket.socket:
        """A stream to a server that lives for one connection."""
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours

    def _serve(self, stream: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        try:
            with stream, context.wrap_socket(stream, server_side=True) as secure:
                file = secure.makefile("rb")
                assert file.readline() == b"POST / HTTP/1.1\r\n"
                lines = iter(lambda: file.readline().decode().strip(), "")
                headers = dict(line.split(": ", 1) for line in lines)
                body = file.read(int(headers["content-length"]))
                check_signature(headers, body)
                request = json.loads(body)
                self.requests.append((headers, request))
                status, members = self.reply(self, request)
                answer = members if isinstance(members, bytes) else json.dumps(members).encode()
                secure.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(answer)) + answer)
        except OSError:
            pass  # the client did not like us: the test looks at its error

    def good(self, request: dict[str, Any]) -> dict[str, Any]:
        """What KMS answers, with the plaintext sealed for the key in the document."""
        document = base64.b64decode(request["Recipient"]["AttestationDocument"])
        payload: Any = cbor.decode(cbor.decode(document)[2])  # type: ignore[index]
        public = serialization.load_der_public_key(payload["public_key"])
        assert isinstance(public, rsa.RSAPublicKey)
        sealed = self.seal(public, self.plaintext)
        return {
            "KeyId": ARN,
            "CiphertextForRecipient": base64.b64encode(sealed).decode(),
            "CiphertextBlob": base64.b64encode(b"blob").decode(),
            "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "SomethingNew": {},
        }


def check_signature(headers: dict[str, str], body: bytes) -> None:
    """Verify SigV4 as a server does, from the names in the header."""
    credential, signed, signature = (part.split("=", 1)[1] for part in headers["authorization"].split(", "))
    names = signed.split(";")
    assert {"host", "x-amz-date", "x-amz-target", "content-type"} <= set(names)
    canonical = "POST\n/\n\n" + "".join(f"{name}:{headers[name]}\n" for name in names) + f"\n{signed}\n"
    canonical += hashlib.sha256(body).hexdigest()
    scope = credential.split("/", 1)[1]
    assert scope == "20231114/us-east-1/kms/aws4_request"
    key = b"AWS4" + SECRET.encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    assert hmac.new(key, text.encode(), "sha256").hexdigest() == signature


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A self-signed server certificate for localhost and 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = directory / f"{name}.pem", directory / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    directory = tmp_path_factory.mktemp("tls")
    return {name: make_certificate(directory, name) for name in ("good", "other")}


@pytest.fixture
def server(files: dict[str, tuple[Path, Path]], seal: Callable[..., bytes]) -> Iterator[Server]:
    return Server(*files["good"], seal)


def client(server: Server, *, host: str = "localhost:8443", ca: Path | None = None, **more: Any) -> AttestedKms:
    credentials = more.pop("credentials", Credentials("AKIDEXAMPLE", SECRET))
    return AttestedKms(
        "us-east-1",
        credentials,
        host,
        ca_file=str(ca or server.certificate),
        transport=server,
        attester=more.pop("attester", Attester()),
        **more,
    )


def test_decrypt_brings_the_secret_home(server: Server) -> None:
    """The request is KMS's, the answer is opened, and the document's time signs it."""
    attester = Attester()
    kms = client(server, attester=attester)
    assert kms.decrypt(b"cipher", key_id=ARN, encryption_context={"a": "b"}, grant_tokens=["t"]) == b"the secret"
    headers, request = server.requests[0]
    assert headers["host"] == "localhost:8443"
    assert headers["x-amz-target"] == "TrentService.Decrypt"
    assert headers["x-amz-date"] == "20231114T221320Z"
    assert "x-amz-security-token" not in headers
    assert request.pop("Recipient")["KeyEncryptionAlgorithm"] == "RSAES_OAEP_SHA_256"
    assert request == {
        "CiphertextBlob": base64.b64encode(b"cipher").decode(),
        "KeyId": ARN,
        "EncryptionContext": {"a": "b"},
        "GrantTokens": ["t"],
    }


def test_one_key_a_client_and_one_document_a_call(server: Server) -> None:
    """Documents are never reused; the key is made once, and another client has another."""
    attester = Attester()
    kms = client(server, attester=attester)
    kms.decrypt(b"c", key_id=ARN)
    kms.decrypt(b"c", key_id="0123")
    client(server, attester=attester).decrypt(b"c", key_id=UNSAFE_ANY_KEY)
    first, second, third = attester.keys
    assert first == second != third


def test_data_keys_and_random_bytes(server: Server) -> None:
    """The other two operations, and the sizes that are checked."""
    server.plaintext = bytes(32)
    data_key = client(server).generate_data_key(ARN)
    assert (data_key.plaintext, data_key.ciphertext, data_key.key_id) == (bytes(32), b"blob", ARN)
    assert client(server).generate_random(32) == bytes(32)
    for call in (
        lambda: client(server).generate_random(16),
        lambda: client(server).generate_data_key(ARN, key_spec="AES_128"),
    ):
        with pytest.raises(ProtocolError):
            call()
    for bad in (lambda: client(server).generate_random(0), lambda: client(server).generate_data_key(ARN, key_spec="X")):
        with pytest.raises(UsageError):
            bad()


def test_credentials_are_fetched_for_every_call(server: Server) -> None:
    """A function gives fresh ones; the session token is sent and signed."""
    tokens = iter(("one", "two"))
    kms = client(server, credentials=lambda: Credentials("AKIDEXAMPLE", SECRET, next(tokens)))
    kms.decrypt(b"c", key_id=ARN)
    kms.decrypt(b"c", key_id=ARN)
    assert [headers["x-amz-security-token"] for headers, _ in server.requests] == ["one", "two"]


def test_secrets_stay_out_of_representations() -> None:
    """Neither credentials nor data keys show their secrets in a log."""
    assert SECRET not in repr(Credentials("AKIDEXAMPLE", SECRET, SECRET))


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ({"__type": "AccessDeniedException", "Message": "no, m"}, "AccessDeniedException", "no, m"),
        ({"__type": "com.x#DisabledException:http", "message": "m"}, "DisabledException", "m"),
        ({"__type": "InvalidCiphertextException"}, "InvalidCiphertextException", ""),
        (b"<html>", "HTTP400", ""),
    ],
)  # fmt: skip
def test_errors_keep_their_type_and_message(server: Server, body: Any, kind: str, message: str) -> None:
    """KMS's own words arrive, in either spelling of the member (kms.md §1.3)."""
    server.reply = lambda *_: (400, body)
    with pytest.raises(KmsError) as caught:
        client(server).decrypt(b"c", key_id=ARN)
    assert (caught.value.kind, caught.value.message, caught.value.status) == (kind, message, 400)
    assert kind in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"KeyId": ARN + "4"}, ProtocolError),
        ({"KeyId": None}, ProtocolError),
        ({"Plaintext": "c2VjcmV0"}, ProtocolError),
        ({"CiphertextForRecipient": None}, ProtocolError),
        ({"CiphertextForRecipient": "c2Vj*"}, ProtocolError),
        ({"CiphertextForRecipient": "c2VjcmV0"}, EnvelopeError),
    ],
)
def test_answers_that_may_not_be_trusted(server: Server, change: dict[str, Any], error: type[Exception]) -> None:
    """Another key, a plaintext in the open, no envelope, a bad envelope: an error each."""
    server.reply = lambda server, request: (200, server.good(request) | change)
    with pytest.raises(error):
        client(server).decrypt(b"c", key_id=ARN)


@pytest.mark.parametrize("body", [b"[]", b"{", b"", b"[" * 100_000])
def test_an_answer_without_members_is_an_error(server: Server, body: bytes) -> None:
    """A 200 must be a JSON object with what was asked for."""
    server.reply = lambda *_: (200, body)
    with pytest.raises(ProtocolError):
        client(server).decrypt(b"c", key_id=ARN)


@pytest.mark.parametrize("alias", ["alias/a", "arn:aws:kms:us-east-1:1:alias/a", ""])
def test_an_alias_is_refused(server: Server, alias: str) -> None:
    """It cannot be compared with the answer's key, so nothing is sent."""
    with pytest.raises(UsageError):
        client(server).decrypt(b"c", key_id=alias)
    assert server.requests == []


def test_a_foreign_certificate_and_a_foreign_name_are_refused(
    server: Server, files: dict[str, tuple[Path, Path]]
) -> None:
    """Only the pinned CA and the right name will do: the parent owns the stream underneath."""
    with pytest.raises(ProtocolError, match="not trusted"):
        client(server, ca=files["other"][0]).decrypt(b"c", key_id=ARN)
    with pytest.raises(ProtocolError, match="not trusted"):
        client(server, host="kms.example.org").decrypt(b"c", key_id=ARN)
    assert server.requests == []
    assert client(server, host="127.0.0.1:1").decrypt(b"c", key_id=ARN) == b"the secret"


def test_a_cut_connection_is_the_environments_fault(server: Server) -> None:
    """A stream that ends in the handshake is a MachineError, not a hang."""

    class Cut:
        def connect(self) -> socket.socket:
            ours, theirs = socket.socketpair()
            theirs.close()
            return ours

    kms = AttestedKms(
        "us-east-1", Credentials("a", "b"), "localhost", ca_file=str(server.certificate), transport=Cut(),
        attester=Attester(),
    )  # fmt: skip
    with pytest.raises(MachineError):
        kms.decrypt(b"c", key_id=ARN)


def test_a_ca_file_must_hold_certificates(server: Server, tmp_path: Path) -> None:
    """A missing or empty file is said at once, and the image's store is no fallback."""
    (tmp_path / "empty.pem").touch()
    for file in (tmp_path / "none.pem", tmp_path / "empty.pem"):
        with pytest.raises(MachineError):
            client(server, ca=file)


@pytest.mark.parametrize("host", ["https://x", "a b", "x:port", "x\r\ny", ""])
def test_an_endpoint_is_a_name_with_or_without_a_port(server: Server, host: str) -> None:
    """Anything else is refused before a document is made."""
    with pytest.raises(UsageError):
        client(server, host=host)


def test_regions_have_their_partitions() -> None:
    """The names of sdk.md §2."""
    names = {"us-east-1": "kms.us-east-1.amazonaws.com", "cn-north-1": "kms.cn-north-1.amazonaws.com.cn"}
    names |= {"us-isob-east-1": "kms.us-isob-east-1.sc2s.sgov.gov", "eusc-de-east-1": "kms.eusc-de-east-1.amazonaws.eu"}
    assert {region: default_host(region) for region in names} == names
