"""Every operation of the KMS with boto3 as it is (kms.md §2).

Each chapter checks what it is answered. The endpoint, Region and credentials come from boto3's usual places; a second
Region that the service has, and a role that the caller may take on, from --replica-region and --role.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding

CONTEXT = {"app": "tour", "purpose": "äöü"}
NOT_SERVED = {
    "connect_custom_key_store": {"CustomKeyStoreId": "cks-1"},
    "create_custom_key_store": {"CustomKeyStoreName": "tour"},
    "delete_custom_key_store": {"CustomKeyStoreId": "cks-1"},
    "describe_custom_key_stores": {},
    "disconnect_custom_key_store": {"CustomKeyStoreId": "cks-1"},
    "update_custom_key_store": {"CustomKeyStoreId": "cks-1"},
}


class Tour:
    """One visitor: its clients, the keys it made, and the operations it called."""

    def __init__(self, replica_region: str, role: str) -> None:
        self.kms, self.there = client("kms"), client("kms", region_name=replica_region)
        self.sts = client("sts")
        self.replica_region, self.role = replica_region, role
        self.keys: list[str] = []
        self.called: set[str] = set()
        for one in (self.kms, self.there):
            one.meta.events.register("before-call.kms", lambda model, **_: self.called.add(model.name))

    def key(self, **options: Any) -> str:
        """A new key."""
        key_id: str = self.kms.create_key(Description="a key of the tour", **options)["KeyMetadata"]["KeyId"]
        self.keys.append(key_id)
        return key_id


def client(service: str, **options: Any) -> Any:
    """A boto3 client that tries once."""
    return boto3.client(service, config=Config(retries={"max_attempts": 0}), **options)


def refused(code: str, call: Callable[..., Any], **arguments: Any) -> None:
    """The call must fail with this code."""
    try:
        call(**arguments)
    except ClientError as error:
        check(error.response["Error"]["Code"] == code, f"{error.response['Error']['Code']} instead of {code}")
        return
    check(False, f"{code} was to be expected")


def check(holds: bool, what: str) -> None:
    """Stops the tour when something is not as it should be."""
    if not holds:
        raise SystemExit(f"tour: error: {what}")


def callers(tour: Tour) -> None:
    """Who am I, and who can I be: STS beside the KMS."""
    me = tour.sts.get_caller_identity()["Arn"]
    session = tour.sts.assume_role(RoleArn=tour.role, RoleSessionName="tour")["Credentials"]
    other = client(
        "sts",
        aws_access_key_id=session["AccessKeyId"],
        aws_secret_access_key=session["SecretAccessKey"],
        aws_session_token=session["SessionToken"],
    )
    check(other.get_caller_identity()["Arn"] not in {me, tour.role}, "the session is somebody of its own")


def encryption(tour: Tour) -> None:
    """Encrypt, Decrypt, ReEncrypt, with a context that must be the same."""
    kms, key, other = tour.kms, tour.key(), tour.key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")
    sealed = kms.encrypt(KeyId=key, Plaintext=b"secret", EncryptionContext=CONTEXT)["CiphertextBlob"]
    opened = kms.decrypt(CiphertextBlob=sealed, EncryptionContext=CONTEXT)
    check(opened["Plaintext"] == b"secret", "Decrypt gives back what Encrypt was given")
    refused("InvalidCiphertextException", kms.decrypt, CiphertextBlob=sealed)
    refused("DryRunOperationException", kms.encrypt, KeyId=key, Plaintext=b"x", DryRun=True)
    moved = kms.re_encrypt(
        CiphertextBlob=sealed,
        SourceEncryptionContext=CONTEXT,
        DestinationKeyId=other,
        DestinationEncryptionAlgorithm="RSAES_OAEP_SHA_256",
    )["CiphertextBlob"]
    opened = kms.decrypt(CiphertextBlob=moved, KeyId=other, EncryptionAlgorithm="RSAES_OAEP_SHA_256")
    check(opened["Plaintext"] == b"secret", "ReEncrypt keeps the plaintext")
    check(kms.get_key_last_usage(KeyId=key)["KeyLastUsage"]["Operation"] == "ReEncrypt", "the last use is known")


def data_keys(tour: Tour) -> None:
    """Data keys, data key pairs and random bytes."""
    kms, key = tour.kms, tour.key()
    made = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)
    opened = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=CONTEXT)
    check(opened["Plaintext"] == made["Plaintext"], "a data key opens again")
    wrapped = kms.generate_data_key_without_plaintext(KeyId=key, NumberOfBytes=64)["CiphertextBlob"]
    check(len(kms.decrypt(CiphertextBlob=wrapped)["Plaintext"]) == 64, "a data key has the size that was asked for")
    for spec in ("RSA_2048", "ECC_NIST_P384", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519", "ML_KEM_768"):
        if spec not in kms.meta.service_model.shape_for("DataKeyPairSpec").enum:
            continue
        pair = kms.generate_data_key_pair(KeyId=key, KeyPairSpec=spec)
        opened = kms.decrypt(CiphertextBlob=pair["PrivateKeyCiphertextBlob"])
        check(opened["Plaintext"] == pair["PrivateKeyPlaintext"], f"a data key pair of {spec} opens again")
    made = kms.generate_data_key_pair_without_plaintext(KeyId=key, KeyPairSpec="ECC_NIST_P256")
    check("PrivateKeyPlaintext" not in made, "the private key stays wrapped")
    check(len(kms.generate_random(NumberOfBytes=32)["Plaintext"]) == 32, "random bytes are as many as asked for")


def signatures(tour: Tour) -> None:
    """Sign and Verify with every kind of key, and a check of one outside the KMS."""
    kms = tour.kms
    for spec in ("RSA_2048", "ECC_NIST_P256", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519", "ML_DSA_44"):
        key = tour.key(KeySpec=spec, KeyUsage="SIGN_VERIFY")
        for algorithm in kms.describe_key(KeyId=key)["KeyMetadata"]["SigningAlgorithms"]:
            signed = {"KeyId": key, "Message": b"m" * 64, "SigningAlgorithm": algorithm}
            if algorithm == "ED25519_PH_SHA_512":  # it takes digests alone
                signed["MessageType"] = "DIGEST"
            signature = kms.sign(**signed)["Signature"]
            check(kms.verify(**signed, Signature=signature)["SignatureValid"], f"{algorithm} verifies")
            wrong = {**signed, "Message": b"a" * 64}
            refused("KMSInvalidSignatureException", kms.verify, **wrong, Signature=signature)
        if spec == "ECC_NIST_P256":
            public: Any = serialization.load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
            digest = hashlib.sha256(b"message").digest()
            signature = kms.sign(KeyId=key, Message=digest, MessageType="DIGEST", SigningAlgorithm=algorithm)[
                "Signature"
            ]
            public.verify(signature, b"message", ec.ECDSA(hashes.SHA256()))


def macs(tour: Tour) -> None:
    """GenerateMac and VerifyMac."""
    for size in (224, 256, 384, 512):
        key = tour.key(KeySpec=f"HMAC_{size}", KeyUsage="GENERATE_VERIFY_MAC")
        asked = {"KeyId": key, "Message": b"message", "MacAlgorithm": f"HMAC_SHA_{size}"}
        mac = tour.kms.generate_mac(**asked)["Mac"]
        check(tour.kms.verify_mac(**asked, Mac=mac)["MacValid"], "a MAC verifies")
        refused("KMSInvalidMacException", tour.kms.verify_mac, **asked, Mac=mac[::-1])


def agreement(tour: Tour) -> None:
    """DeriveSharedSecret with somebody outside; Encapsulate and Decapsulate."""
    kms, key = tour.kms, tour.key(KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")
    mine = ec.generate_private_key(ec.SECP256R1())
    spki = mine.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    answer = kms.derive_shared_secret(KeyId=key, KeyAgreementAlgorithm="ECDH", PublicKey=spki)
    theirs: Any = serialization.load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    check(answer["SharedSecret"] == mine.exchange(ec.ECDH(), theirs), "both sides derive one secret")
    if not hasattr(kms, "encapsulate"):
        return  # an older botocore
    for spec in ("ML_KEM_768", "ML_KEM_1024"):
        key = tour.key(KeySpec=spec, KeyUsage="ENCAPSULATE_DECAPSULATE")
        sent = kms.encapsulate(KeyId=key, EncapsulationAlgorithm="ML_KEM")
        got = kms.decapsulate(
            KeyId=key,
            EncapsulationAlgorithm="ML_KEM",
            SharedSecretCiphertextBlob=sent["SharedSecretCiphertextBlob"],
        )
        check(got["SharedSecret"] == sent["SharedSecret"], "an encapsulated secret comes out again")


def names(tour: Tour) -> None:
    """Aliases, tags, descriptions, and lists in pages."""
    kms, key, other = tour.kms, tour.key(Tags=[{"TagKey": "room", "TagValue": "1"}]), tour.key()
    alias = f"alias/tour-{os.urandom(4).hex()}"
    kms.create_alias(AliasName=alias, TargetKeyId=key)
    kms.update_alias(AliasName=alias, TargetKeyId=other)
    check(kms.describe_key(KeyId=alias)["KeyMetadata"]["KeyId"] == other, "an alias moves")
    check(kms.list_aliases(KeyId=other)["Aliases"][0]["AliasName"] == alias, "an alias is listed")
    kms.delete_alias(AliasName=alias)
    kms.tag_resource(KeyId=key, Tags=[{"TagKey": "room", "TagValue": "2"}, {"TagKey": "door", "TagValue": "3"}])
    kms.untag_resource(KeyId=key, TagKeys=["door"])
    check(kms.list_resource_tags(KeyId=key)["Tags"] == [{"TagKey": "room", "TagValue": "2"}], "tags come and go")
    kms.update_key_description(KeyId=key, Description="described anew")
    check(kms.describe_key(KeyId=key)["KeyMetadata"]["Description"] == "described anew", "a description changes")
    pages = list(kms.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 3}))
    listed = {entry["KeyId"] for page in pages for entry in page["Keys"]}
    check(len(pages) > 1 and {key, other} <= listed, "keys are listed in pages")


def policies(tour: Tour) -> None:
    """Key policies, and the check that keeps from locking everybody out."""
    kms, key = tour.kms, tour.key()
    policy = json.loads(kms.get_key_policy(KeyId=key)["Policy"])
    policy["Statement"].append(
        {"Sid": "no plaintext", "Effect": "Deny", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*"}
    )
    sealed = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    kms.put_key_policy(KeyId=key, Policy=json.dumps(policy))
    check(kms.list_key_policies(KeyId=key)["PolicyNames"] == ["default"], "a key has one policy")
    refused("AccessDeniedException", kms.decrypt, CiphertextBlob=sealed)
    policy["Statement"] = policy["Statement"][1:]
    refused("MalformedPolicyDocumentException", kms.put_key_policy, KeyId=key, Policy=json.dumps(policy))


def grants(tour: Tour) -> None:
    """Grants: made, listed, used, retired and revoked."""
    kms, key, me = tour.kms, tour.key(), tour.sts.get_caller_identity()["Arn"]
    constraints = {"EncryptionContextSubset": {"app": "tour"}}
    made = [
        kms.create_grant(
            KeyId=key, GranteePrincipal=tour.role, RetiringPrincipal=me, Operations=["Decrypt"], Constraints=constraints
        )
        for _ in range(2)
    ]
    check(len(kms.list_grants(KeyId=key)["Grants"]) == 2, "grants are listed by key")
    check(len(kms.list_retirable_grants(RetiringPrincipal=me)["Grants"]) >= 2, "and by who may retire them")
    kms.describe_key(KeyId=key, GrantTokens=[made[0]["GrantToken"]])
    kms.retire_grant(GrantToken=made[0]["GrantToken"])
    kms.revoke_grant(KeyId=key, GrantId=made[1]["GrantId"])
    check(kms.list_grants(KeyId=key)["Grants"] == [], "grants end")


def imports(tour: Tour) -> None:
    """Key material from outside: imported, used, deleted."""
    kms, key = tour.kms, tour.key(Origin="EXTERNAL")
    way = {"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
    given = kms.get_parameters_for_import(KeyId=key, **way)
    public: Any = serialization.load_der_public_key(given["PublicKey"])
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    kms.import_key_material(
        KeyId=key,
        ImportToken=given["ImportToken"],
        EncryptedKeyMaterial=public.encrypt(os.urandom(32), oaep),
        ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE",
    )
    sealed = kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    kms.delete_imported_key_material(KeyId=key)
    refused("KMSInvalidStateException", kms.decrypt, CiphertextBlob=sealed)


def rotation(tour: Tour) -> None:
    """New material under an old key; what the old one encrypted stays readable."""
    kms, key = tour.kms, tour.key()
    sealed = kms.encrypt(KeyId=key, Plaintext=b"old")["CiphertextBlob"]
    kms.enable_key_rotation(KeyId=key, RotationPeriodInDays=90)
    check(kms.get_key_rotation_status(KeyId=key)["RotationPeriodInDays"] == 90, "a rotation is scheduled")
    kms.rotate_key_on_demand(KeyId=key)
    check(len(kms.list_key_rotations(KeyId=key)["Rotations"]) == 1, "a rotation is listed")
    check(kms.decrypt(CiphertextBlob=sealed)["Plaintext"] == b"old", "old material still decrypts")
    kms.disable_key_rotation(KeyId=key)


def regions(tour: Tour) -> None:
    """A key in two Regions, and a change of the one that leads."""
    key, there = tour.key(MultiRegion=True), tour.replica_region
    tour.kms.replicate_key(KeyId=key, ReplicaRegion=there)
    sealed = tour.kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    check(tour.there.decrypt(CiphertextBlob=sealed)["Plaintext"] == b"x", "the replica decrypts")
    tour.kms.update_primary_region(KeyId=key, PrimaryRegion=there)
    places = tour.there.describe_key(KeyId=key)["KeyMetadata"]["MultiRegionConfiguration"]
    check(places["PrimaryKey"]["Region"] == there, "the other Region leads")
    tour.there.update_primary_region(KeyId=key, PrimaryRegion=tour.kms.meta.region_name)
    tour.there.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)


def states(tour: Tour) -> None:
    """Off and on, scheduled for deletion and back, and the end."""
    kms, key = tour.kms, tour.key()
    kms.disable_key(KeyId=key)
    refused("DisabledException", kms.encrypt, KeyId=key, Plaintext=b"x")
    kms.enable_key(KeyId=key)
    kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    kms.cancel_key_deletion(KeyId=key)
    check(kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled", "a key comes back disabled")
    for one in tour.keys:
        kms.schedule_key_deletion(KeyId=one, PendingWindowInDays=7)


def not_served(tour: Tour) -> None:
    """Custom key stores are AWS's own hardware."""
    for method, arguments in NOT_SERVED.items():
        refused("UnsupportedOperationException", getattr(tour.kms, method), **arguments)


CHAPTERS = (
    callers, encryption, data_keys, signatures, macs, agreement, names, policies, grants, imports, rotation, regions,
    states, not_served,
)  # fmt: skip


def main() -> None:
    """Walk through all chapters, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replica-region", default="eu-west-1")
    parser.add_argument("--role", default="arn:aws:iam::111122223333:role/tourist")
    arguments = parser.parse_args()
    tour = Tour(arguments.replica_region, arguments.role)
    for chapter in CHAPTERS:
        chapter(tour)
        print(f"{chapter.__name__}: {(chapter.__doc__ or '').strip()}")
    missing = set(tour.kms.meta.service_model.operation_names) - tour.called
    check(not missing, f"not called: {', '.join(sorted(missing))}")
    print(f"{len(tour.called)} operations, all of this boto3's model")


if __name__ == "__main__":
    main()
