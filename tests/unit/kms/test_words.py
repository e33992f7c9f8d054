"""AWS's class, text and status for every case of which they are known (kms.md §2.3, §8, §10, §11): one table."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.kms.in_process import PEER, InProcess, in_process

from alcove.kms.claim import SignedRequest
from alcove.kms.users import add_user

ACCOUNT = "111122223333"
HERE = f"arn:aws:kms:us-east-1:{ACCOUNT}"
NOWHERE = "11111111-2222-4333-8444-555555555555"
RSA = {"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"}
SIGNING = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}
MAC = {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"}
ROOT = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "kms:*", "Resource": "*"}
OAEP = "RSAES_OAEP_SHA_256"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [ROOT, *statements]})


FOR_ALL = {
    "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*",
    "Condition": {"ForAllValues:StringEquals": {"kms:EncryptionContext:a": "b"}},
}  # fmt: skip
LOCKED = json.dumps({"Version": "2012-10-17", "Statement": [{**ROOT, "Action": "kms:Decrypt"}]})
NOBODY = policy({**ROOT, "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:user/nobody"}})
LOST = "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access."  # noqa: E501
CONTEXT = "OverlyPermissiveCondition:EncryptionContext: Using the ForAllValues set operator with a single-valued condition key matches requests without the specified encryption context or with an unspecified encryption context. To fix, remove ForAllValues."  # noqa: E501


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("kms")) as service:
        yield service


@pytest.fixture(scope="module")
def names(kms: InProcess) -> dict[str, str]:
    """Keys in every situation, and what was encrypted under them."""

    def key(**options: Any) -> str:
        return str(kms.call("CreateKey", **options)["KeyMetadata"]["KeyId"])

    found = {
        "key": key(), "off": key(), "gone": key(), "waits": key(Origin="EXTERNAL"), "rsa": key(**RSA),
        "sign": key(**SIGNING), "mac": key(**MAC), "mrk": key(MultiRegion=True), "used": key(),
    }  # fmt: skip
    for name in ("key", "gone", "used"):
        found[f"{name} blob"] = kms.call("Encrypt", KeyId=found[name], Plaintext="eA==")["CiphertextBlob"]
    blob = bytearray(base64.b64decode(found["key blob"]))
    blob[10] ^= 1  # in the id of the key
    found["lost blob"] = b64(bytes(blob))
    kms.call("DisableKey", KeyId=found["off"])
    kms.call("ScheduleKeyDeletion", KeyId=found["gone"])
    kms.call("CreateAlias", AliasName="alias/taken", TargetKeyId=found["key"])
    found["waits token"] = kms.call(
        "GetParametersForImport", KeyId=found["waits"], WrappingAlgorithm=OAEP, WrappingKeySpec="RSA_2048"
    )["ImportToken"]
    for _ in range(25):
        kms.call("RotateKeyOnDemand", KeyId=found["used"])
    return found


Case = tuple[str, dict[str, Any], str, str | None]
TAG = {"TagKey": "a", "TagValue": ""}
CASES: list[Case] = [  # `<name>` is what the fixture has under that name; a text of None: there is no message at all
    ("DescribeKey", {"KeyId": "nonsense"}, "NotFoundException", "Invalid keyId 'nonsense'"),
    ("DescribeKey", {"KeyId": "1" * 32}, "NotFoundException", f"Invalid keyId '{'1' * 32}'"),
    ("DescribeKey", {"KeyId": NOWHERE}, "NotFoundException", f"Key '{HERE}:key/{NOWHERE}' does not exist"),
    ("DescribeKey", {"KeyId": "alias/none"}, "NotFoundException", f"Alias {HERE}:alias/none is not found."),
    (
        "DescribeKey", {"KeyId": f"arn:aws:kms:eu-west-3:{ACCOUNT}:key/{NOWHERE}"}, "NotFoundException",
        "Invalid arn eu-west-3",
    ),
    ("Encrypt", {"KeyId": "<off>", "Plaintext": "eA=="}, "DisabledException", f"{HERE}:key/<off> is disabled."),
    (
        "Encrypt", {"KeyId": "<gone>", "Plaintext": "eA=="}, "KMSInvalidStateException",
        f"{HERE}:key/<gone> is pending deletion.",
    ),
    (
        "Encrypt", {"KeyId": "<waits>", "Plaintext": "eA=="}, "KMSInvalidStateException",
        f"{HERE}:key/<waits> is pending import.",
    ),
    (
        "CancelKeyDeletion", {"KeyId": "<key>"}, "KMSInvalidStateException",
        f"{HERE}:key/<key> is not pending deletion.",
    ),
    ("Decrypt", {"CiphertextBlob": "<lost blob>"}, "AccessDeniedException", LOST),
    ("Decrypt", {"CiphertextBlob": "AAAA"}, "InvalidCiphertextException", None),
    ("Decrypt", {"CiphertextBlob": "<key blob>", "EncryptionContext": {"a": "b"}}, "InvalidCiphertextException", None),
    (
        "Decrypt", {"CiphertextBlob": "<key blob>", "KeyId": "<used>"}, "IncorrectKeyException",
        "The key ID in the request does not identify a CMK that can perform this operation.",
    ),
    (
        "GenerateMac", {"KeyId": "<key>", "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256"},
        "InvalidKeyUsageException",
        f"{HERE}:key/<key> key usage is ENCRYPT_DECRYPT which is not valid for GenerateMac.",
    ),
    (
        "GenerateMac", {"KeyId": "<mac>", "Message": "eA==", "MacAlgorithm": "HMAC_SHA_512"},
        "InvalidKeyUsageException", "Algorithm HMAC_SHA_512 is incompatible with key spec HMAC_256.",
    ),
    (
        "VerifyMac", {"KeyId": "<mac>", "Message": "eA==", "MacAlgorithm": "HMAC_SHA_256", "Mac": "AAAA"},
        "KMSInvalidMacException", None,
    ),
    (
        "Verify", {"KeyId": "<sign>", "Message": "eA==", "SigningAlgorithm": "ECDSA_SHA_256", "Signature": "AAAA"},
        "KMSInvalidSignatureException", None,
    ),
    (
        "Sign", {"KeyId": "<sign>", "Message": "eA==", "SigningAlgorithm": "ECDSA_SHA_256", "MessageType": "DIGEST"},
        "ValidationException", "Digest is invalid length for algorithm ECDSA_SHA_256.",
    ),
    (
        "Encrypt", {"KeyId": "<rsa>", "Plaintext": b64(bytes(191)), "EncryptionAlgorithm": OAEP},
        "ValidationException", f"Algorithm {OAEP} and key spec RSA_2048 cannot encrypt data larger than 190 bytes.",
    ),
    ("GenerateRandom", {}, "ValidationException", "NumberOfBytes is required."),
    (
        "GenerateRandom", {"NumberOfBytes": 0}, "ValidationException",
        ("1 validation error detected: Value '0' at 'numberOfBytes' failed to satisfy constraint: "
        "Member must have value greater than or equal to 1"),
    ),
    (
        "GenerateRandom", {"NumberOfBytes": 1025}, "ValidationException",
        ("1 validation error detected: Value '1025' at 'numberOfBytes' failed to satisfy constraint: "
        "Member must have value less than or equal to 1024"),
    ),
    (
        "Encrypt", {"KeyId": "<key>", "Plaintext": b64(bytes(4097))}, "ValidationException",
        ("1 validation error detected: Value at 'plaintext' failed to satisfy constraint: "
        "Member must have length less than or equal to 4096"),
    ),
    (
        "TagResource", {"KeyId": "<key>", "Tags": [{"TagKey": "a" * 129, "TagValue": ""}]}, "ValidationException",
        (f"1 validation error detected: Value '{'a' * 129}' at 'tags.1.member.tagKey' failed to satisfy constraint: "
        "Member must have length less than or equal to 128"),
    ),
    (
        "DeriveSharedSecret", {"KeyId": "<key>", "KeyAgreementAlgorithm": "X", "PublicKey": "AAAA"},
        "ValidationException", ("1 validation error detected: Value 'X' at 'keyAgreementAlgorithm' failed to satisfy "
        "constraint: Member must satisfy enum value set: [ECDH]"),
    ),
    (
        "GenerateDataKey", {"KeyId": "<key>"}, "ValidationException",
        "Please specify either number of bytes or key spec.",
    ),
    (
        "GenerateDataKey", {"KeyId": "<key>", "KeySpec": "AES_256", "NumberOfBytes": 32}, "ValidationException",
        "Please specify either number of bytes or key spec.",
    ),
    (
        "CreateKey", {"KeySpec": "RSA_2048"}, "ValidationException",
        "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.",
    ),
    (
        "CreateKey", {"KeySpec": "RSA_2048", "KeyUsage": "KEY_AGREEMENT"}, "ValidationException",
        "KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048",
    ),
    (
        "CreateAlias", {"AliasName": "taken", "TargetKeyId": "<key>"}, "ValidationException",
        ('Alias must start with the prefix "alias/". Please see '
        "https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html"),
    ),
    (
        "CreateAlias", {"AliasName": "alias/taken", "TargetKeyId": "<key>"}, "AlreadyExistsException",
        f"An alias with the name {HERE}:alias/taken already exists",
    ),
    ("TagResource", {"KeyId": "<key>", "Tags": [TAG, TAG]}, "TagException", "Duplicate tag keys"),
    (
        "TagResource", {"KeyId": "<key>", "Tags": [{"TagKey": f"{n}", "TagValue": ""} for n in range(51)]},
        "TagException", "Too many tags",
    ),
    (
        "TagResource", {"KeyId": "<key>", "Tags": [{"TagKey": "AWS:a", "TagValue": ""}]}, "TagException",
        "Tags beginning with aws: are reserved",
    ),
    (
        "GetParametersForImport", {"KeyId": "<key>", "WrappingAlgorithm": OAEP, "WrappingKeySpec": "RSA_2048"},
        "UnsupportedOperationException", f"{HERE}:key/<key> origin is AWS_KMS which is not valid for this operation.",
    ),
    (
        "EnableKeyRotation", {"KeyId": "<waits>"}, "UnsupportedOperationException",
        f"{HERE}:key/<waits> origin is EXTERNAL which is not valid for this operation.",
    ),
    (
        "ImportKeyMaterial",
        {
            "KeyId": "<waits>", "ImportToken": "<waits token>", "EncryptedKeyMaterial": "AAAA",
            "ExpirationModel": "KEY_MATERIAL_EXPIRES",
        },
        "ValidationException", "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES",
    ),
    (
        "ReplicateKey", {"KeyId": "<key>", "ReplicaRegion": "eu-west-1"}, "UnsupportedOperationException",
        f"{HERE}:key/<key> is not a multi-region primary key.",
    ),
    ("RotateKeyOnDemand", {"KeyId": "<rsa>"}, "UnsupportedOperationException", None),
    (
        "RotateKeyOnDemand", {"KeyId": "<used>"}, "LimitExceededException",
        ("The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be "
        f"performed for this key: {HERE}:key/<used>"),
    ),
    ("RetireGrant", {}, "ValidationException", "Grant token OR (grant ID, key ID) must be specified"),
    (
        "PutKeyPolicy", {"KeyId": "<key>", "Policy": LOCKED}, "MalformedPolicyDocumentException",
        "The new key policy will not allow you to update the key policy in the future.",
    ),
    (
        "PutKeyPolicy", {"KeyId": "<key>", "Policy": NOBODY}, "MalformedPolicyDocumentException",
        "Policy contains a statement with one or more invalid principals.",
    ),
    ("PutKeyPolicy", {"KeyId": "<key>", "Policy": policy(FOR_ALL)}, "MalformedPolicyDocumentException", CONTEXT),
    (
        "PutKeyPolicy", {"KeyId": "<key>", "PolicyName": "AWS_RAM", "Policy": policy()}, "ValidationException",
        "The AWS_RAM policy can only be managed by the RAM service.",
    ),
    ("GetKeyPolicy", {"KeyId": "<key>", "PolicyName": "other"}, "NotFoundException", "No such policy exists"),
    (
        "Encrypt", {"KeyId": "<key>", "Plaintext": "eA==", "DryRun": True}, "DryRunOperationException",
        "The request would have succeeded, but the DryRun option is set.",
    ),
]  # fmt: skip


def filled(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        for name, found in names.items():
            value = value.replace(f"<{name}>", found)
    return value


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_the_words(kms: InProcess, names: dict[str, str], case: Case) -> None:
    """Each in its class with exactly its text, under AWS's name of the member, and with status 400."""
    operation, members, kind, text = case
    body = json.dumps({name: filled(value, names) for name, value in members.items()}).encode()
    answer = kms.send(operation, body)
    found = json.loads(answer.body)
    member = "Message" if kind == "AccessDeniedException" else "message"
    expected = {"__type": kind} | ({member: filled(text, names)} if text is not None else {})
    assert (answer.status, found) == (400, expected)


def test_a_denial_says_which_side_it_comes_from(kms: InProcess) -> None:
    """The four texts of §10.4, each for a user whose policies are so."""
    deny = {"Effect": "Deny", "Action": "kms:Encrypt", "Resource": "*"}
    allow = {"Effect": "Allow", "Action": "kms:Encrypt", "Resource": "*"}
    plain, barred = (add_user(kms.store, name) for name in ("plain", "barred"))
    denier = add_user(kms.store, "denier", policies=[json.dumps({"Statement": [allow, deny]})])
    open_to = {"Effect": "Allow", "Principal": {"AWS": plain.arn}, "Action": "kms:Decrypt", "Resource": "*"}
    shut = {"Effect": "Deny", "Principal": {"AWS": barred.arn}, "Action": "kms:Encrypt", "Resource": "*"}
    key = kms.call("CreateKey", Policy=policy(open_to, shut))["KeyMetadata"]["Arn"]
    for user, reason in (
        (plain, "because no identity-based policy allows the kms:Encrypt action"),
        (barred, "with an explicit deny in a resource-based policy"),
        (denier, "with an explicit deny in an identity-based policy"),
    ):
        answer = kms.send("Encrypt", json.dumps({"KeyId": key, "Plaintext": "eA=="}).encode(), user)
        found = json.loads(answer.body)
        expected = f"User: {user.arn} is not authorized to perform: kms:Encrypt on resource: {key} {reason}"
        assert (answer.status, found["__type"], found["Message"]) == (400, "AccessDeniedException", expected)


def test_an_unsigned_or_wrongly_signed_request_has_its_words(kms: InProcess) -> None:
    """Those that clients look at: who it is, where it is for, and when."""
    good = dict(kms.signed("ListKeys", b"{}").headers)
    day = good["x-amz-date"][:8]

    def said(**changed: str) -> tuple[str, str]:
        given = good | {name.replace("_", "-"): value for name, value in changed.items()}
        answer = kms.service.handle(SignedRequest("POST", "/", "", tuple(given.items()), b"{}"), PEER)
        found = json.loads(answer.body)
        assert answer.status == 400
        return found["__type"], found["message"]

    def scoped(old: str, new: str) -> tuple[str, str]:
        return said(authorization=good["authorization"].replace(old, new))

    wrong = "InvalidSignatureException"
    assert scoped(kms.admin.access_key_id, "AKIAUNKNOWN") == (
        "UnrecognizedClientException", "The security token included in the request is invalid.",
    )  # fmt: skip
    assert scoped("us-east-1", "mars-1") == (wrong, "Credential should be scoped to a valid Region, not mars-1")
    assert scoped("/kms/", "/sts/") == (wrong, "Credential should be scoped to correct service: 'kms'")
    assert scoped(f"/{day}/", "/20200101/") == (
        wrong, "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP",
    )  # fmt: skip
    assert scoped("aws4_request", "aws5") == (
        wrong, "Credential should be scoped with a valid terminator: 'aws4_request'",
    )  # fmt: skip
    kind, text = said(x_amz_target="TrentService.ListAliases")
    assert kind == wrong
    assert text.startswith("The request signature we calculated does not match the signature you provided.")
