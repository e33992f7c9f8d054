"""A whole KMS on loopback, for tests: Alcove's own, with TLS, in a directory that is thrown away.

Use it so:

    with LocalKms(directory, roots=[nsm.root]) as kms:
        key = kms.create_key({"PCR0": nsm.pcr(0)})       # only an enclave with this register may use it
        os.environ.update(kms.environment)               # boto3 then finds endpoint, CA and credentials
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import queue
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

import boto3
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from alcove.attestation.verify import Root
from alcove.errors import MachineError
from alcove.kms.server import DEFAULT_REGION, ServeConfig, serve
from alcove.kms.sqlite_store import open_store
from alcove.kms.users import NewUser, add_user
from alcove.sdk.endpoint import Credentials, Endpoint
from alcove.sdk.tls import TcpTransport

ATTESTED: Final = (
    "kms:Decrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyPair", "kms:DeriveSharedSecret",
)  # fmt: skip
RANDOM: Final = json.dumps(  # it has no key, and so no key policy that could allow it
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:GenerateRandom", "Resource": "*"}]}
)
MANAGED: Final = (
    "kms:CreateAlias", "kms:CreateGrant", "kms:DescribeKey", "kms:Encrypt", "kms:GetKeyPolicy", "kms:GetPublicKey",
    "kms:PutKeyPolicy", "kms:ScheduleKeyDeletion",
)  # fmt: skip
_SECONDS: Final = 30.0


class LocalKms:
    """A KMS with an administrator and an application's user; a context manager that serves it from a thread.

    Args:
        directory: Where it keeps its files; empty, or those of an earlier one.
        roots: Attestation roots that it trusts.
        names: Names that its certificate carries beside `localhost` and 127.0.0.1.
        region: The Region that it serves.
    """

    def __init__(
        self, directory: Path, roots: Sequence[Root], *, names: Sequence[str] = (), region: str = DEFAULT_REGION
    ) -> None:
        self.region: Final = region
        self.ca_file: Final = directory / "kms-ca.pem"
        key_file = directory / "kms-tls.key"
        _make_certificate(self.ca_file, key_file, names)
        self._config = ServeConfig(
            store=f"sqlite:///{directory}/kms.sqlite",
            root_key=directory / "root.key",
            audit=directory / "audit.jsonl",
            roots=roots,
            port=0,
            tls_cert=self.ca_file,
            tls_key=key_file,
            region=region,
            grace=0,  # the tested application may keep a connection open
        )
        with contextlib.closing(open_store(self._config.store, self._config.root_key)) as store:
            self.account: Final = store.account
            taken = len(store.users())
            self._admin = add_user(store, f"administrator{taken}", admin=True)
            self._user = add_user(store, f"application{taken}", policies=[RANDOM])
        self._stop = threading.Event()
        self._port = 0

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return self._port

    @property
    def url(self) -> str:
        """Its endpoint, with the name that its certificate carries."""
        return f"https://localhost:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What leads AWS's SDKs to it, as the application's user: what key policies allow, and GenerateRandom."""
        return {
            "AWS_ENDPOINT_URL_KMS": self.url,
            "AWS_CA_BUNDLE": str(self.ca_file),
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self._user.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self._user.secret_access_key,
        }

    @property
    def endpoint(self) -> Endpoint:
        """It, as programs in an enclave reach it by the SDK, as the application's user."""
        credentials = Credentials(self._user.access_key_id, self._user.secret_access_key)
        transport = TcpTransport("127.0.0.1", self._port)
        host = f"localhost:{self._port}"
        return Endpoint(self.region, credentials, host, ca_file=str(self.ca_file), transport=transport)

    @property
    def admin(self) -> Any:
        """A boto3 client as the administrator."""
        return self._client(self._admin)

    @property
    def app(self) -> Any:
        """A boto3 client as the application's user, without attestation."""
        return self._client(self._user)

    def create_key(self, pcrs: Mapping[str, bytes | str], **parameters: Any) -> str:
        """The ARN of a new key that only the application's user in an enclave with these registers can use.

        Args:
            pcrs: Registers by `PCR<number>`, bytes or hex.
            parameters: More of CreateKey's, such as KeySpec.
        """
        digests = {name: value if isinstance(value, str) else value.hex() for name, value in pcrs.items()}
        condition = {f"kms:RecipientAttestation:{name}": value for name, value in digests.items()}
        owner = {"AWS": f"arn:aws:iam::{self.account}:root"}
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Principal": owner, "Action": list(MANAGED), "Resource": "*"},
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": self._user.arn},
                    "Action": list(ATTESTED),
                    "Resource": "*",
                    "Condition": {"StringEqualsIgnoreCase": condition},
                },
            ],
        }
        made = self.admin.create_key(Policy=json.dumps(policy), **parameters)
        return str(made["KeyMetadata"]["Arn"])

    def encrypt(self, key_id: str, plaintext: bytes, **parameters: Any) -> str:
        """Encrypt as the administrator; the ciphertext in base64."""
        answer = self.admin.encrypt(KeyId=key_id, Plaintext=plaintext, **parameters)
        return base64.b64encode(answer["CiphertextBlob"]).decode()

    def records(self) -> list[dict[str, Any]]:
        """The audit log."""
        return [json.loads(line) for line in self._config.audit.read_bytes().splitlines()]

    def __enter__(self) -> Self:
        outcome: queue.Queue[str | BaseException] = queue.Queue()

        def run() -> None:
            try:
                serve(self._config, ready=outcome.put, stop=self._stop)
            except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
                outcome.put(error)

        self._thread = threading.Thread(target=run, name="alcove-kms", daemon=True)
        self._thread.start()
        try:
            first = outcome.get(timeout=_SECONDS)
        except queue.Empty:
            first = MachineError(f"the KMS did not start within {_SECONDS:.0f} s")
        if isinstance(first, BaseException):
            self.__exit__()
            raise first
        self._port = int(first.rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=_SECONDS)

    def _client(self, user: NewUser) -> Any:
        session = boto3.Session(user.access_key_id, user.secret_access_key, region_name=self.region)
        config = Config(retries={"max_attempts": 0}, connect_timeout=_SECONDS, read_timeout=2 * _SECONDS)
        return session.client("kms", endpoint_url=self.url, verify=str(self.ca_file), config=config)


def _make_certificate(file: Path, key_file: Path, names: Sequence[str]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Alcove KMS for tests")])
    now = datetime.now(UTC)
    known = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, names)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName(known), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.touch(0o600)
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
