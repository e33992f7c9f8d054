"""Real programs use the token through Debian's own p11-kit: OpenSC, GnuTLS, OpenSSL's engine and provider, curl."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.unit.apps.acm_device import PIN, certificate, ec_key, rsa_key, serving, token, unix_address

from alcove.apps.acm.mechanisms import Profile
from alcove.apps.acm.token import Slots

ROOT = Path(__file__).parents[3]
CLIENT = next(Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so"), None)
ENGINE = next(Path("/usr/lib").glob("*/engines-3/pkcs11.so"), None)
PROVIDER = next((ROOT / ".peers" / "usr" / "lib").glob("*/ossl-modules/pkcs11.so"), None)
DATA = b"what real programs sign\n"
SHA256 = hashes.SHA256()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CLIENT is None or ENGINE is None or PROVIDER is None or shutil.which("pkcs11-tool") is None,
        reason="`scripts/setup --tests` has not been run",
    ),
]


@dataclass(frozen=True)
class Stage:
    """A server with two tokens, `full` and `tls`, of an RSA key (1) and a P-256 key (2) each."""

    directory: Path
    environment: dict[str, str]
    log: list[str]
    slots: Slots

    def run(self, *command: object, status: int = 0, text: bytes = b"") -> str:
        """Run a program against the server; what it said."""
        done = subprocess.run(
            list(map(str, command)), env=self.environment, cwd=self.directory, input=text, capture_output=True,
            timeout=60, check=False,
        )  # fmt: skip
        said = done.stdout.decode("latin-1") + done.stderr.decode("latin-1")
        assert done.returncode == status, said
        return said

    def tool(self, *arguments: object, label: str = "full", pin: str = PIN.decode(), status: int = 0) -> str:
        """pkcs11-tool, logged in to a token."""
        login = ("--login", "--pin", pin)
        return self.run("pkcs11-tool", "--module", CLIENT, "--token-label", label, *login, *arguments, status=status)


def uri(object_id: int, label: str = "full") -> str:
    """The URI of a private key, with the PIN, as a web server's configuration has it."""
    return f"pkcs11:model=p11ne-token;manufacturer=Amazon;token={label};id=%0{object_id};type=private?pin-value=123456"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("p11")
    slots = Slots(time.monotonic)
    slots.add(token("full", [rsa_key(), ec_key()]))
    slots.add(token("tls", [rsa_key(), ec_key()], profile=Profile.TLS))
    (directory / "data").write_bytes(DATA)
    for number, key in enumerate((rsa_key(), ec_key()), 1):
        pem = key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (directory / f"public{number}.pem").write_bytes(pem)
    (directory / "openssl.cnf").write_text(
        "openssl_conf = i\n[i]\nproviders = p\n[p]\ndefault = d\npkcs11 = k\n[d]\nactivate = 1\n"
        f"[k]\nmodule = {PROVIDER}\npkcs11-module-path = {CLIENT}\nactivate = 1\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "P11_KIT_SERVER_ADDRESS": unix_address(directory),
        "PKCS11_MODULE_PATH": str(CLIENT),
    }
    with serving(slots, unix_address(directory)) as log:
        yield Stage(directory, environment, log, slots)
    assert log == []


def verify_rsa(signature: bytes, scheme: padding.AsymmetricPadding | None = None) -> None:
    rsa_key().public.verify(signature, DATA, scheme or padding.PKCS1v15(), SHA256)  # type: ignore[call-arg, arg-type]


def verify_ec(der: bytes) -> None:
    ec_key().public.verify(der, DATA, ec.ECDSA(SHA256))  # type: ignore[call-arg, arg-type]


def test_pkcs11_tool_lists_tokens_and_objects(stage: Stage) -> None:
    """Both tokens with AWS's names, and the keys and certificates of one."""
    said = stage.run("pkcs11-tool", "--module", CLIENT, "--list-slots")
    assert [line.split(":")[1].strip() for line in said.splitlines() if "token label" in line] == ["full", "tls"]
    assert "p11ne-token" in said
    objects = stage.tool("--list-objects")
    assert objects.count("Private Key Object") == objects.count("Public Key Object; ") == 2
    assert "sensitive, always sensitive, never extractable" in objects


@pytest.mark.parametrize("name", ["SHA256-RSA-PKCS", "SHA256-RSA-PKCS-PSS", "RSA-PKCS-PSS"])
def test_pkcs11_tool_signs_and_verifies_with_rsa(stage: Stage, name: str) -> None:
    """Signed on the token, verified by `cryptography` and on the token; a mechanism that p11-kit drops is left out."""
    if name not in stage.tool("--list-mechanisms"):
        pytest.skip(f"this p11-kit does not know {name}")
    data = stage.directory / "data"
    if name == "RSA-PKCS-PSS":
        data = stage.directory / "hashed"
        digest = hashes.Hash(SHA256)
        digest.update(DATA)
        data.write_bytes(digest.finalize())
    pss = ["--hash-algorithm", "SHA256", "--mgf", "MGF1-SHA256", "--salt-len", "32"] if "PSS" in name else []
    files = ["--input-file", data]
    stage.tool("--sign", "--id", "01", "-m", name, *pss, *files, "--output-file", "rsa.sig")
    scheme = padding.PSS(padding.MGF1(SHA256), 32) if pss else None
    verify_rsa((stage.directory / "rsa.sig").read_bytes(), scheme)
    said = stage.tool("--verify", "--id", "01", "-m", name, *pss, *files, "--signature-file", "rsa.sig")
    assert "Signature is valid" in said


def test_pkcs11_tool_signs_and_verifies_with_ecdsa(stage: Stage) -> None:
    """ECDSA over a hash that SHA-1 made: what p11-kit 0.24 knows to hash with."""
    files = ["--id", "02", "-m", "ECDSA-SHA1", "--input-file", "data"]
    stage.tool("--sign", *files, "--output-file", "ec.sig")
    raw = (stage.directory / "ec.sig").read_bytes()
    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    ec_key().public.verify(der, DATA, ec.ECDSA(hashes.SHA1()))  # type: ignore[call-arg, arg-type]  # noqa: S303
    assert "Signature is valid" in stage.tool("--verify", *files, "--signature-file", "ec.sig")


def test_pkcs11_tool_signs_raw_data(stage: Stage) -> None:
    """RSA_PKCS over any bytes, and RSA_X_509, which the profile "full" has."""
    for name in ("RSA-PKCS", "RSA-X-509"):
        stage.tool("--sign", "--id", "01", "-m", name, "--input-file", "data", "--output-file", "raw.sig")
        said = stage.tool(
            "--verify", "--id", "01", "-m", name, "--input-file", "data", "--signature-file", "raw.sig",
        )  # fmt: skip
        assert "Signature is valid" in said


@pytest.mark.parametrize("name", ["RSA-PKCS", "RSA-PKCS-OAEP"])
def test_pkcs11_tool_decrypts(stage: Stage, name: str) -> None:
    """What OpenSSL's public key encrypted."""
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    options: list[str] = []
    if name == "RSA-PKCS-OAEP":
        scheme = padding.OAEP(padding.MGF1(SHA256), SHA256, None)
        options = ["--hash-algorithm", "SHA256", "--mgf", "MGF1-SHA256"]
    (stage.directory / "encrypted").write_bytes(rsa_key().public.encrypt(DATA, scheme))  # type: ignore[union-attr]
    stage.tool(
        "--decrypt", "--id", "01", "-m", name, *options, "--input-file", "encrypted", "--output-file", "decrypted"
    )
    assert (stage.directory / "decrypted").read_bytes() == DATA


def test_pkcs11_tool_is_told_what_is_wrong(stage: Stage) -> None:
    """A wrong PIN, a decryption where only TLS is served, an attempt to write: PKCS#11's own errors."""
    assert "CKR_PIN_INCORRECT" in stage.tool("--list-objects", pin="000000", status=1)
    arguments = ["--decrypt", "--id", "01", "-m", "RSA-PKCS", "--input-file", "data", "--output-file", "nothing"]
    assert "CKR_KEY_FUNCTION_NOT_PERMITTED" in stage.tool(*arguments, label="tls", status=1)
    said = stage.tool("--keypairgen", "--key-type", "rsa:2048", status=1)
    assert "CKR_TOKEN_WRITE_PROTECTED" in said


def test_p11tool_lists_and_tests_the_keys(stage: Stage) -> None:
    """GnuTLS finds everything by URL, and signs with both keys of the token for TLS."""
    said = stage.run(
        "p11tool", "--provider", CLIENT, "--login", "--set-pin", "123456", "--list-all", "pkcs11:token=tls"
    )
    assert said.count("Type: Private key") == 2
    for number in (1, 2):
        url = f"pkcs11:token=tls;id=%0{number};type=private"
        said = stage.run("p11tool", "--provider", CLIENT, "--login", "--set-pin", "123456", "--test-sign", url)
        assert said.count("... ok") >= 2, said  # signing and verifying


def openssl_engine(stage: Stage, number: int, label: str) -> None:
    """A signature by OpenSSL's engine "pkcs11"."""
    key = uri(number, label)
    stage.run(
        "openssl", "dgst", "-engine", "pkcs11", "-keyform", "engine", "-sha256", "-sign", key, "-out", "engine.sig",
        "data",
    )  # fmt: skip
    verify = verify_rsa if number == 1 else verify_ec
    verify((stage.directory / "engine.sig").read_bytes())


def openssl_provider(stage: Stage, number: int, label: str) -> None:
    """A signature by OpenSSL's provider "pkcs11"."""
    stage.environment["OPENSSL_CONF"] = str(stage.directory / "openssl.cnf")
    try:
        stage.run(
            "openssl", "pkeyutl", "-sign", "-rawin", "-digest", "sha256", "-inkey", uri(number, label), "-in", "data",
            "-out", "provider.sig",
        )  # fmt: skip
    finally:
        del stage.environment["OPENSSL_CONF"]
    verify = verify_rsa if number == 1 else verify_ec
    verify((stage.directory / "provider.sig").read_bytes())


@pytest.mark.parametrize("label", ["full", "tls"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("signs", [openssl_engine, openssl_provider])
def test_openssl_signs(stage: Stage, signs: Callable[[Stage, int, str], None], number: int, label: str) -> None:
    """With RSA and P-256, through the engine and through the provider, on a token for TLS as on a full one."""
    signs(stage, number, label)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("number", [1, 2])
def test_curl_shows_a_client_certificate(stage: Stage, number: int, version: str) -> None:
    """TLS with a client's key on the token: the server verifies the handshake's signature and sees the certificate."""
    key = rsa_key() if number == 1 else ec_key()
    server_key = stage.directory / "server.key"
    server_certificate = certificate(server_pair := ec_key(ec.SECP384R1))
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat  # noqa: PLC0415

    server_key.write_bytes(server_pair.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (stage.directory / "server.pem").write_bytes(server_certificate.public_bytes(Encoding.PEM))
    client = certificate(key, "client.example").public_bytes(Encoding.PEM)
    (stage.directory / "client.pem").write_bytes(client)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(stage.directory / "server.pem", server_key)
    context.load_verify_locations(cadata=client.decode())
    context.verify_mode = ssl.CERT_REQUIRED

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.connection.getpeercert()["subject"][0][0][1]  # type: ignore[attr-defined]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        said = stage.run(
            "curl", "--silent", "--show-error", "--max-time", "20", "--tls-max", version, "--cacert", "server.pem",
            "--engine", "pkcs11", "--key-type", "ENG", "--key", uri(number, "tls"), "--cert", "client.pem",
            f"https://localhost:{server.server_port}/",
        )  # fmt: skip
        thread.join()
    assert said == "client.example"


PYTHON_PKCS11 = """
import sys, pkcs11
from pkcs11 import Mechanism, KeyType, ObjectClass
library = pkcs11.lib(sys.argv[1])
assert [token.label for token in library.get_tokens()] == ["full", "tls"]
token = library.get_token(token_label="full")
data = open("data", "rb").read()
with token.open(user_pin="123456") as session:
    key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, key_type=KeyType.RSA)
    public = session.get_key(object_class=ObjectClass.PUBLIC_KEY, key_type=KeyType.RSA)
    signature = key.sign(data, mechanism=Mechanism.SHA256_RSA_PKCS)
    assert public.verify(data, signature, mechanism=Mechanism.SHA256_RSA_PKCS)
    parts = [data[:3], data[3:]]
    assert key.sign(iter(parts), mechanism=Mechanism.SHA256_RSA_PKCS) == signature
    assert key.decrypt(public.encrypt(data, mechanism=Mechanism.RSA_PKCS), mechanism=Mechanism.RSA_PKCS) == data
    assert session.digest(data, mechanism=Mechanism.SHA256).hex() == __import__("hashlib").sha256(data).hexdigest()
    curve = session.get_key(object_class=ObjectClass.PRIVATE_KEY, key_type=KeyType.EC)
    assert len(curve.sign(bytes(32), mechanism=Mechanism.ECDSA)) == 64
    open("python.sig", "wb").write(signature)
try:
    token.open(user_pin="000000")
except pkcs11.PinIncorrect:
    print("fine")
"""


def test_python_pkcs11_uses_the_token(stage: Stage) -> None:
    """Signs at once and in parts, verifies, decrypts, digests; a wrong PIN is its PinIncorrect."""
    import sys  # noqa: PLC0415

    assert stage.run(sys.executable, "-c", PYTHON_PKCS11, CLIENT).strip() == "fine"
    verify_rsa((stage.directory / "python.sig").read_bytes())


def test_many_programs_at_once_have_sessions_of_their_own(stage: Stage) -> None:
    """Eight signers side by side, each with a process, a login and a key of its own choice."""
    command = [
        "openssl", "dgst", "-engine", "pkcs11", "-keyform", "engine", "-sha256", "-hex", "-sign", uri(1, "tls"), "data",
    ]  # fmt: skip
    running = [
        subprocess.Popen(
            command, env=stage.environment, cwd=stage.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(8)
    ]
    said = {process.communicate(timeout=60)[0].split()[-1] for process in running}
    assert [process.returncode for process in running] == [0] * 8
    (signature,) = said  # PKCS#1 v1.5 is deterministic
    verify_rsa(bytes.fromhex(signature.decode()))
