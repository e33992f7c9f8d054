"""Secrets for the proven alone: documents of a real authority, policies that pin PCRs, boto3 in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.kms.authority_harness import GOOD, Enclave, make_attester, make_authority, spki
from tests.unit.kms.server_harness import ROOT_ARN, RunningKms

from alcove.attestation.attester import Attester

OTHER = GOOD | {0: b"\x0b" * 48}
DEBUG = GOOD | {0: bytes(48), 1: bytes(48), 2: bytes(48)}
PCR0 = "kms:RecipientAttestation:PCR0"
ATTESTED = ["kms:Decrypt", "kms:GenerateDataKey"]
SECRET = b"released to the right code alone"


@pytest.fixture(scope="module")
def kms(trusting_kms: RunningKms) -> RunningKms:
    return trusting_kms


def make_key(kms: RunningKms, *conditional: dict[str, Any]) -> str:
    """A key that the administrator manages and cannot use, with these statements for everyone else."""
    actions = ["kms:PutKeyPolicy", "kms:DescribeKey", "kms:Encrypt"]
    admin = {"Effect": "Allow", "Principal": {"AWS": ROOT_ARN}, "Action": actions, "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [admin, *conditional]})
    return str(kms.admin.create_key(Policy=policy)["KeyMetadata"]["KeyId"])


def statement(kms: RunningKms, operator: str, value: str, *, effect: str = "Allow") -> dict[str, Any]:
    principal = {"AWS": kms.app_user.arn}
    condition = {operator: {PCR0: value}}
    return {"Effect": effect, "Principal": principal, "Action": ATTESTED, "Resource": "*", "Condition": condition}


@pytest.fixture(scope="module")
def pinned(kms: RunningKms) -> str:
    return make_key(kms, statement(kms, "StringEqualsIgnoreCase", GOOD[0].hex()))


@pytest.fixture(scope="module")
def sealed(kms: RunningKms, pinned: str) -> bytes:
    return bytes(kms.admin.encrypt(KeyId=pinned, Plaintext=SECRET)["CiphertextBlob"])


def refusal(kms: RunningKms, sealed: bytes, **options: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        kms.app.decrypt(CiphertextBlob=sealed, **options)
    error = caught.value.response["Error"]
    return error["Code"], error.get("Message", "")


def test_the_right_enclave_gets_the_secret(kms: RunningKms, attester: Attester, sealed: bytes) -> None:
    """The envelope opens with the enclave's key, and no plaintext is beside it."""
    enclave = Enclave(attester, GOOD)
    answer = kms.app.decrypt(CiphertextBlob=sealed, Recipient=enclave.recipient())
    assert enclave.open(answer["CiphertextForRecipient"]) == SECRET
    assert set(answer) == {"CiphertextForRecipient", "KeyId", "EncryptionAlgorithm", "ResponseMetadata"}


def test_a_data_key_comes_in_an_envelope(kms: RunningKms, attester: Attester, pinned: str) -> None:
    """The blob beside the envelope is of the same key; the plaintext member is absent."""
    enclave = Enclave(attester, GOOD)
    made = kms.app.generate_data_key(KeyId=pinned, KeySpec="AES_256", Recipient=enclave.recipient())
    assert set(made) == {"CiphertextForRecipient", "CiphertextBlob", "KeyId", "ResponseMetadata"}
    data_key = enclave.open(made["CiphertextForRecipient"])
    again = kms.app.decrypt(CiphertextBlob=made["CiphertextBlob"], Recipient=enclave.recipient())
    assert enclave.open(again["CiphertextForRecipient"]) == data_key
    assert len(data_key) == 32


def test_random_bytes_come_in_an_envelope(kms: RunningKms, attester: Attester) -> None:
    """GenerateRandom with a recipient answers with the envelope alone."""
    enclave = Enclave(attester, GOOD)
    answer = kms.admin.generate_random(NumberOfBytes=1024, Recipient=enclave.recipient())
    assert set(answer) == {"CiphertextForRecipient", "ResponseMetadata"}
    assert len(enclave.open(answer["CiphertextForRecipient"])) == 1024


def test_the_parent_gets_nothing(kms: RunningKms, sealed: bytes) -> None:
    """The same user without a document is refused, and told why."""
    kind, message = refusal(kms, sealed)
    assert kind == "AccessDeniedException"
    assert message.endswith("(no attestation document was given, so there is no kms:RecipientAttestation:PCR0)")


def test_another_image_gets_nothing(kms: RunningKms, attester: Attester, sealed: bytes) -> None:
    """The refusal names the condition, what it found and what the policy wants."""
    kind, message = refusal(kms, sealed, Recipient=Enclave(attester, OTHER).recipient())
    assert kind == "AccessDeniedException"
    assert "because no resource-based policy allows the kms:Decrypt action" in message
    assert message.endswith(f"({PCR0} is {OTHER[0].hex()} and the key policy requires {GOOD[0].hex()})")
    failed = kms.records()[-1]["additionalEventData"]
    assert failed["decision"]["conditions"][0]["actual"] == OTHER[0].hex()
    assert failed["decision"]["conditions"][0]["expected"] == [GOOD[0].hex()]
    assert failed["recipient"]["attestationDocumentEnclaveImageDigest"] == OTHER[0].hex()


def test_debug_mode_is_called_by_its_name(kms: RunningKms, attester: Attester, sealed: bytes) -> None:
    """Zero PCRs are explained: the most frequent question of all."""
    kind, message = refusal(kms, sealed, Recipient=Enclave(attester, DEBUG).recipient())
    assert kind == "AccessDeniedException"
    assert f"{PCR0} is zero: the enclave runs in debug mode" in message


@pytest.mark.parametrize(
    ("operator", "value", "outcome"),
    [
        ("StringEquals", "0" * 96, True),
        ("StringLike", "*", False),
        ("StringLike", "0*", True),
        ("Null", "false", False),
        ("StringNotEquals", OTHER[0].hex(), False),
        ("ForAnyValue:StringLike", "*", False),
    ],
)
def test_debug_mode_is_let_in_by_zeros_alone(
    kms: RunningKms, attester: Attester, operator: str, value: str, *, outcome: bool
) -> None:
    """Zero PCRs count where a policy spells them; no other condition lets them in."""
    key = make_key(kms, statement(kms, operator, value))
    assert succeeds(kms, key, {"Recipient": Enclave(attester, DEBUG).recipient()}) is outcome
    assert succeeds(kms, key, {"Recipient": Enclave(attester, GOOD).recipient()}) is not outcome


def test_a_document_that_was_cut_off_is_refused(kms: RunningKms, attester: Attester, sealed: bytes) -> None:
    """Wherever it ends; and one with more behind it."""
    document = Enclave(attester, GOOD).document()
    for part in (*(document[:end] for end in range(1, len(document), 101)), document[:-1], document + b"\0"):
        recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": part}
        assert refusal(kms, sealed, Recipient=recipient)[0] == "ValidationException"


def test_a_document_is_good_for_five_minutes(kms: RunningKms, attester: Attester, sealed: bytes) -> None:
    """At 290 seconds it counts, at 310 it does not, and clients find the words they retry on."""
    enclave = Enclave(attester, GOOD, age=290)
    assert kms.app.decrypt(CiphertextBlob=sealed, Recipient=enclave.recipient())["CiphertextForRecipient"]
    kind, message = refusal(kms, sealed, Recipient=Enclave(attester, GOOD, age=310).recipient())
    assert (kind, message) == (
        "ValidationException",
        "the attestation document exceeded the five-minute age limit",
    )


@pytest.mark.parametrize("garbage", [b"garbage", b"\x84", bytes(20_000), bytes(262_144)])
def test_garbage_is_no_document(kms: RunningKms, sealed: bytes, garbage: bytes) -> None:
    """It fails the call; there is no falling back to plaintext, not even for an administrator."""
    recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": garbage}
    kind, message = refusal(kms, sealed, Recipient=recipient)
    assert kind == "ValidationException"
    assert "cannot parse the attestation document" in message
    with pytest.raises(ClientError):
        kms.admin.generate_random(NumberOfBytes=1, Recipient=recipient)


def test_a_changed_document_is_refused(kms: RunningKms, attester: Attester, sealed: bytes) -> None:
    """One bit of the signature, and the words tell a forger nothing."""
    document = bytearray(Enclave(attester, GOOD).document())
    document[-1] ^= 1
    recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": bytes(document)}
    assert refusal(kms, sealed, Recipient=recipient) == (
        "ValidationException",
        "the attestation document is not valid",
    )


def test_another_root_is_refused(kms: RunningKms, sealed: bytes, tmp_path: Path) -> None:
    """A whole authority of one's own proves nothing here."""
    stranger = make_attester(make_authority(tmp_path))
    kind, message = refusal(kms, sealed, Recipient=Enclave(stranger, GOOD).recipient())
    assert (kind, message) == ("ValidationException", "the attestation document is not valid")
    assert "attestation step 7" in kms.records()[-1]["additionalEventData"]["because"]


def test_a_document_needs_a_key_to_answer_to(kms: RunningKms, attester: Attester, sealed: bytes) -> None:
    """No public_key, an elliptic one, and bytes that are none."""
    enclave = Enclave(attester, GOOD)
    for key in (b"", spki(ec.generate_private_key(ec.SECP256R1())), b"garbage"):
        kind, message = refusal(kms, sealed, Recipient=enclave.recipient(key))
        assert kind == "ValidationException"
        assert "public_key" in message


def test_half_a_recipient_is_refused(kms: RunningKms, attester: Attester, sealed: bytes) -> None:
    """Both members, always; an empty object does not mean plaintext."""
    whole = Enclave(attester, GOOD).recipient()
    for half in ({}, {name: value for name, value in whole.items() if name == "AttestationDocument"}):
        assert refusal(kms, sealed, Recipient=half)[0] == "ValidationException"


def test_another_wrapping_algorithm_is_refused(kms: RunningKms, attester: Attester, sealed: bytes) -> None:
    """There is one, by the model's enumeration."""
    recipient = Enclave(attester, GOOD).recipient() | {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_1"}
    kind, message = refusal(kms, sealed, Recipient=recipient)
    assert kind == "ValidationException"
    assert "Member must satisfy enum value set: [RSAES_OAEP_SHA_256]" in message


@pytest.mark.parametrize(
    ("operator", "value", "nobody", "equal", "different"),
    [
        ("StringEquals", GOOD[0].hex(), False, True, False),
        ("StringEqualsIgnoreCase", GOOD[0].hex().upper(), False, True, False),
        ("StringEquals", GOOD[0].hex().upper(), False, False, False),
        ("StringLike", GOOD[0].hex()[:10] + "*", False, True, False),
        ("StringNotEquals", GOOD[0].hex(), True, False, True),
        ("StringEqualsIfExists", GOOD[0].hex(), True, True, False),
        ("Null", "true", True, False, False),
        ("Null", "false", False, True, True),
        ("ForAllValues:StringEquals", GOOD[0].hex(), True, True, False),
        ("ForAnyValue:StringEquals", GOOD[0].hex(), False, True, False),
    ],
)
def test_the_truth_table_on_the_wire(
    kms: RunningKms, attester: Attester, operator: str, value: str, *, nobody: bool, equal: bool, different: bool
) -> None:
    """Each row of kms.md §6.3, for an Allow and, turned round, for a Deny."""
    everyone = statement(kms, "StringLike", "*")
    del everyone["Condition"]
    allowing = make_key(kms, statement(kms, operator, value))
    denying = make_key(kms, everyone, statement(kms, operator, value, effect="Deny"))
    cases = ((None, nobody), (GOOD, equal), (OTHER, different))
    for pcrs, expected in cases:
        for key, outcome in ((allowing, expected), (denying, not expected)):
            options = {} if pcrs is None else {"Recipient": Enclave(attester, pcrs).recipient()}
            assert succeeds(kms, key, options) is outcome, (pcrs, key == denying)


def succeeds(kms: RunningKms, key: str, options: dict[str, Any]) -> bool:
    try:
        answer = kms.app.generate_data_key(KeyId=key, NumberOfBytes=16, **options)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDeniedException"  # noqa: PT017 - both outcomes are fine
        return False
    assert ("Plaintext" in answer) == (not options)
    return True


def test_the_image_key_is_pcr0_and_every_pcr_counts(kms: RunningKms, attester: Attester) -> None:
    """ImageSha384 is PCR0; several keys are AND; a PCR that the document lacks matches nothing."""
    prefix = "kms:RecipientAttestation:"
    both = statement(kms, "StringEquals", "")
    both["Condition"] = {"StringEquals": {f"{prefix}ImageSha384": GOOD[0].hex(), f"{prefix}PCR4": GOOD[4].hex()}}
    key = make_key(kms, both)
    for pcrs, outcome in ((GOOD, True), (OTHER, False), (GOOD | {4: bytes(48)}, False), ({0: GOOD[0]}, False)):
        assert succeeds(kms, key, {"Recipient": Enclave(attester, pcrs).recipient()}) is outcome
