from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
)

from alcove.errors import ProtocolError, UsageError
from alcove.sdk.boto3 import attested, install
from alcove.sdk.errors import EnvelopeError, NotInEnclaveError
from alcove.testing import LocalKms, SimulatedNSM

ARN = "arn:aws:kms:us-east-1:111122223333:key/"
KEY = f"{ARN}11111111-2222-3333-4444-555555555555"
OTHER = f"{ARN}99999999-2222-3333-4444-555555555555"


def attested_client() -> Any:
    session = boto3.Session()
    install(session)
    return session.client("kms")


def key_of(kms: LocalKms, nsm: SimulatedNSM, **parameters: str) -> str:
    return kms.create_key({"PCR0": nsm.pcr(0)}, **parameters)


def test_an_unmodified_program_decrypts(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """With `install()` alone boto3's own client gets its plaintext, and KMS saw a document; without, it is refused."""
    key = key_of(alcove_kms, alcove_nsm)
    blob = base64.b64decode(alcove_kms.encrypt(key, b"secret"))
    with pytest.raises(ClientError, match="AccessDenied"):
        boto3.client("kms").decrypt(CiphertextBlob=blob)
    install()
    answer = boto3.client("kms").decrypt(CiphertextBlob=blob)
    assert (answer["Plaintext"], answer["KeyId"]) == (b"secret", key)
    assert "CiphertextForRecipient" not in answer
    seen = alcove_kms.records()[-1]["additionalEventData"]["recipient"]
    assert seen["attestationDocumentModuleId"] == alcove_nsm.enclave_id


def test_the_four_other_operations(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """Data key, key pair, shared secret and random bytes come back in their own members, and are right."""
    client = attested_client()
    key = key_of(alcove_kms, alcove_nsm)
    made = client.generate_data_key(KeyId=key, KeySpec="AES_128")
    assert len(made["Plaintext"]) == 16
    assert client.decrypt(CiphertextBlob=made["CiphertextBlob"], KeyId=key)["Plaintext"] == made["Plaintext"]
    pair = client.generate_data_key_pair(KeyId=key, KeyPairSpec="ECC_NIST_P256")
    private = load_der_private_key(pair["PrivateKeyPlaintext"], None)
    public = load_der_public_key(pair["PublicKey"])
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.public_key() == public
    agreement = key_of(alcove_kms, alcove_nsm, KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")
    theirs = load_der_public_key(alcove_kms.admin.get_public_key(KeyId=agreement)["PublicKey"])
    assert isinstance(theirs, ec.EllipticCurvePublicKey)
    spki = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    derived = client.derive_shared_secret(KeyId=agreement, KeyAgreementAlgorithm="ECDH", PublicKey=spki)
    assert derived["SharedSecret"] == private.exchange(ec.ECDH(), theirs)


def test_random_bytes(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms, monkeypatch: pytest.MonkeyPatch) -> None:
    """GenerateRandom comes in an envelope too; it needs a right of the user's own, so the administrator asks."""
    with attested(alcove_kms.admin) as client:
        assert len(client.generate_random(NumberOfBytes=1024)["Plaintext"]) == 1024
    assert "recipient" in alcove_kms.records()[-1]["additionalEventData"]


def test_each_call_has_its_own_document(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """Documents are made per call: none is used twice."""
    with attested(alcove_kms.admin) as client:
        for _ in range(3):
            client.generate_random(NumberOfBytes=1)
    recipients = [record["additionalEventData"]["recipient"] for record in alcove_kms.records()[-3:]]
    assert len({recipient["attestationDocumentSha256"] for recipient in recipients}) == 3


def test_another_image_is_refused_with_kms_own_error(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """KMS's refusal reaches the program as boto3's ClientError, with the condition that failed."""
    client = attested_client()
    key = key_of(alcove_kms, alcove_nsm)
    alcove_nsm.boot({"PCR0": bytes([7]) * 48})
    with pytest.raises(ClientError, match="RecipientAttestation:PCR0"):
        client.generate_data_key(KeyId=key, KeySpec="AES_256")


def test_the_block_ends(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """`attested` covers a client for the block, also inside a session that is installed, and nothing after it."""
    key = key_of(alcove_kms, alcove_nsm)
    plain = boto3.Session().client("kms")
    with attested(plain) as client:
        assert client.generate_data_key(KeyId=key, NumberOfBytes=7)["Plaintext"]
    with pytest.raises(ClientError):
        plain.generate_data_key(KeyId=key, NumberOfBytes=7)
    installed = attested_client()
    with attested(installed):
        installed.generate_data_key(KeyId=key, NumberOfBytes=7)
    assert len(installed.generate_data_key(KeyId=key, NumberOfBytes=7)["Plaintext"]) == 7


def test_an_alias_and_an_id_are_asked_for_as_well(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """A program may name its key in every form that KMS takes."""
    client = attested_client()
    key = key_of(alcove_kms, alcove_nsm)
    alcove_kms.admin.create_alias(AliasName="alias/app", TargetKeyId=key)
    for name in (key, key.rpartition("/")[2], "alias/app", f"{key.partition(':key/')[0]}:alias/app"):
        assert client.generate_data_key(KeyId=name, KeySpec="AES_256")["KeyId"] == key


def test_the_other_calls_are_left_alone(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms) -> None:
    """Encrypt and DescribeKey carry no document, nor does another service's client; a Recipient of one's own stays."""
    key = key_of(alcove_kms, alcove_nsm)
    with attested(alcove_kms.admin) as client:
        client.describe_key(KeyId=key)
        with pytest.raises(ClientError, match=r"(?i)attestation"):
            client.generate_random(
                NumberOfBytes=1,
                Recipient={"AttestationDocument": b"mine", "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256"},
            )
    assert "recipient" not in (alcove_kms.records()[-2].get("additionalEventData") or {})
    with pytest.raises(UsageError, match="sts"):
        install(boto3.client("sts"))


@pytest.mark.parametrize("make", [botocore.session.Session, boto3.Session])
def test_both_kinds_of_session(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms, make: Callable[[], Any]) -> None:
    """boto3's and botocore's sessions are taken; what is neither is named in the error."""
    session = make()
    install(session)
    install(session)
    client = (session.client if isinstance(session, boto3.Session) else session.create_client)("kms")
    assert client.generate_data_key(KeyId=key_of(alcove_kms, alcove_nsm), KeySpec="AES_256")["Plaintext"]
    with pytest.raises(UsageError, match="neither a session nor a client"):
        install(object())


def test_outside_of_an_enclave_the_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`install` itself needs no device; the first call does, and nothing is sent without a document."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    session = boto3.Session(region_name="us-east-1")
    install(session)
    with pytest.raises(NotInEnclaveError, match="not in an enclave"):
        session.client("kms", endpoint_url="https://127.0.0.1:1").generate_random(NumberOfBytes=1)


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """A session that is not installed; it has read botocore's models once for all."""
    return boto3.Session("a", "b", region_name="us-east-1")


@pytest.fixture
def scripted(alcove_nsm: SimulatedNSM, seal: Callable[..., bytes], session: boto3.Session) -> SimpleNamespace:
    """A client whose KMS answers what the test says; `envelope` seals for the key of the request's document."""
    from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415

    from alcove.attestation import parse_document  # noqa: PLC0415

    script = SimpleNamespace(reply={}, seen=[], options={})

    def answer(request: Any, **_: Any) -> AWSResponse:
        asked = json.loads(request.body)
        script.seen.append(asked)
        encode = base64.b64encode
        document = base64.b64decode(asked["Recipient"]["AttestationDocument"])
        public = load_der_public_key(parse_document(document).public_key)
        reply = {
            name: encode(value(public)).decode() if callable(value) else value for name, value in script.reply.items()
        }
        raw = SimpleNamespace(stream=lambda *_: [json.dumps(reply).encode()])
        return AWSResponse(request.url, 200, {}, raw)

    def client(url: str = "https://kms.example", **options: Any) -> Any:
        made = session.client("kms", endpoint_url=url)
        made.meta.events.register("before-send.kms", answer)
        install(made, **options)
        return made

    script.client, script.seal = client, seal
    return script


@pytest.mark.parametrize("chunk", [None, 16, 4096])
def test_both_forms_of_envelopes_open(scripted: SimpleNamespace, chunk: int | None) -> None:
    """The content may be primitive or constructed, in any pieces: AWS emits both."""
    secret = os.urandom(100)
    scripted.reply = {"KeyId": KEY, "CiphertextForRecipient": lambda public: scripted.seal(public, secret, chunk=chunk)}
    assert scripted.client().decrypt(CiphertextBlob=b"c", KeyId=KEY)["Plaintext"] == secret


@pytest.mark.parametrize("with_envelope", [False, True])
def test_a_plaintext_in_the_open_is_refused(scripted: SimpleNamespace, with_envelope: bool) -> None:
    """Alone or beside an envelope: such a KMS does not honour Recipient."""
    scripted.reply = {"KeyId": KEY, "Plaintext": "QUFBQQ=="}
    if with_envelope:
        scripted.reply["CiphertextForRecipient"] = lambda public: scripted.seal(public, b"x")
    with pytest.raises(ProtocolError, match="in the open"):
        scripted.client().decrypt(CiphertextBlob=b"c")


def test_no_envelope_and_a_bad_one_are_refused(scripted: SimpleNamespace) -> None:
    """Neither nothing nor garbage becomes a plaintext."""
    scripted.reply = {"KeyId": KEY}
    with pytest.raises(ProtocolError, match="CiphertextForRecipient"):
        scripted.client().decrypt(CiphertextBlob=b"c")
    scripted.reply |= {"CiphertextForRecipient": lambda _: b"garbage"}
    with pytest.raises(EnvelopeError):
        scripted.client().decrypt(CiphertextBlob=b"c")


@pytest.mark.parametrize(
    ("asked", "keys", "named", "fine"),
    [
        (KEY, (), KEY, True),
        (KEY, (), OTHER, False),
        (KEY.rpartition("/")[2], (), KEY, True),
        (KEY.rpartition("/")[2], (), OTHER, False),
        (None, (), OTHER, True),
        (None, (KEY,), KEY, True),
        (None, (OTHER, KEY), KEY, True),
        (None, (KEY,), OTHER, False),
        ("alias/a", (), OTHER, True),
        ("alias/a", (KEY,), OTHER, False),
        (KEY.replace(":key/", ":alias/"), (), OTHER, True),
        (KEY.replace("us-east-1", "eu-west-1").replace(":key/", ":alias/"), (), OTHER, False),
        (None, (), "key", False),
        (KEY, (), None, False),
    ],
)
def test_the_key_is_the_one_that_was_asked_for(
    scripted: SimpleNamespace, asked: str | None, keys: tuple[str, ...], named: str | None, fine: bool
) -> None:
    """An answer from another key is refused; an alias and no KeyId are compared with the keys that are allowed."""
    scripted.reply = {"CiphertextForRecipient": lambda public: scripted.seal(public, b"x")}
    scripted.reply |= {"KeyId": named} if named else {}
    client = scripted.client(keys=keys)
    parameters = {"CiphertextBlob": b"c"} | ({"KeyId": asked} if asked else {})
    if fine:
        assert client.decrypt(**parameters)["Plaintext"] == b"x"
        return
    with pytest.raises(ProtocolError, match="key"):
        client.decrypt(**parameters)


@pytest.mark.parametrize("parameters", [{"KeySpec": "AES_256"}, {"NumberOfBytes": 32}])
def test_a_data_key_has_the_size_that_was_asked_for(scripted: SimpleNamespace, parameters: dict[str, Any]) -> None:
    """A shorter one, which somebody else chose, is refused."""
    scripted.reply = {"KeyId": KEY, "CiphertextBlob": "QQ=="}
    scripted.reply |= {"CiphertextForRecipient": lambda public: scripted.seal(public, bytes(16))}
    with pytest.raises(ProtocolError, match="16 bytes where 32"):
        scripted.client().generate_data_key(KeyId=KEY, **parameters)


def test_plain_http_is_refused_unless_it_is_asked_for(scripted: SimpleNamespace) -> None:
    """TLS must end in the enclave; the exception is spelled out."""
    scripted.reply = {"KeyId": KEY, "CiphertextForRecipient": lambda public: scripted.seal(public, b"x")}
    with pytest.raises(UsageError, match="https"):
        scripted.client("http://127.0.0.1:8000").decrypt(CiphertextBlob=b"c")
    assert scripted.seen == []
    client = scripted.client("http://127.0.0.1:8000", unsafe_plain_http=True)
    assert client.decrypt(CiphertextBlob=b"c")["Plaintext"] == b"x"
