"""Imported key material, as clients see it (kms.md §15)."""

from __future__ import annotations

import base64
import contextlib
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from tests.unit.kms.server_harness import ACCOUNT, RunningKms, config, refused, running

from alcove.kms import rootchange
from alcove.kms.rootplace import RootPlace
from alcove.kms.stores import open_store

ARN = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/"
FOREVER = {"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
HASHES: dict[str, hashes.HashAlgorithm] = {"SHA_1": hashes.SHA1(), "SHA_256": hashes.SHA256()}  # noqa: S303
WRAPPINGS = ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"]


@pytest.fixture(scope="module")
def in_a_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    """On SQLite, whose files can be looked into."""
    with running(config(tmp_path_factory.mktemp("kms"))) as service:
        yield service


@pytest.fixture
def key(kms: RunningKms) -> str:
    return new_key(kms)


def new_key(kms: RunningKms, **options: Any) -> str:
    return str(kms.admin.create_key(Origin="EXTERNAL", **options)["KeyMetadata"]["KeyId"])


def wrap(public: bytes, algorithm: str, material: bytes) -> bytes:
    """What a client does with openssl or an HSM."""
    scheme, _, name = algorithm.partition("_SHA_")
    digest = HASHES[f"SHA_{name}"]
    oaep = padding.OAEP(mgf=padding.MGF1(digest), algorithm=digest, label=None)
    wrapping_key: Any = serialization.load_der_public_key(public)
    if scheme == "RSAES_OAEP":
        return bytes(wrapping_key.encrypt(material, oaep))
    ephemeral = os.urandom(32)
    return bytes(wrapping_key.encrypt(ephemeral, oaep)) + keywrap.aes_key_wrap_with_padding(ephemeral, material)


def put(
    kms: RunningKms,
    key: str,
    material: bytes,
    algorithm: str = "RSAES_OAEP_SHA_256",
    spec: str = "RSA_2048",
    **options: Any,
) -> dict[str, Any]:
    """Imports material into a key."""
    given = kms.admin.get_parameters_for_import(KeyId=key, WrappingAlgorithm=algorithm, WrappingKeySpec=spec)
    wrapped = wrap(given["PublicKey"], algorithm, material)
    options = options or FOREVER
    answer = kms.admin.import_key_material(
        KeyId=key, ImportToken=given["ImportToken"], EncryptedKeyMaterial=wrapped, **options
    )
    return dict(answer)


def state(kms: RunningKms, key: str) -> str:
    return str(kms.admin.describe_key(KeyId=key)["KeyMetadata"]["KeyState"])


def test_a_key_waits_for_its_material(kms: RunningKms, key: str) -> None:
    """PendingImport, not usable, without the members that speak of material."""
    made = kms.admin.describe_key(KeyId=key)["KeyMetadata"]
    assert (made["KeyState"], made["Enabled"], made["Origin"]) == ("PendingImport", False, "EXTERNAL")
    assert not {"ExpirationModel", "ValidTo", "CurrentKeyMaterialId"} & set(made)
    for operation in (kms.admin.disable_key, kms.admin.enable_key):
        with refused("KMSInvalidStateException") as error:
            operation(KeyId=key)
        assert error["message"] == f"{ARN}{key} is pending import."
    with refused("KMSInvalidStateException"):
        kms.admin.encrypt(KeyId=key, Plaintext=b"x")
    kms.admin.tag_resource(KeyId=key, Tags=[{"TagKey": "a", "TagValue": "1"}])


@pytest.mark.parametrize("spec", ["RSA_2048", "RSA_3072", "RSA_4096"])
@pytest.mark.parametrize("algorithm", WRAPPINGS)
def test_every_wrapping_carries_a_secret(kms: RunningKms, key: str, algorithm: str, spec: str) -> None:
    """The key works then, and answers name its material."""
    answer = put(kms, key, os.urandom(32), algorithm, spec)
    assert answer["KeyId"] == ARN + key
    made = kms.admin.describe_key(KeyId=key)["KeyMetadata"]
    assert (made["KeyState"], made["ExpirationModel"]) == ("Enabled", "KEY_MATERIAL_DOES_NOT_EXPIRE")
    assert made["CurrentKeyMaterialId"] == answer["KeyMaterialId"]
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert kms.admin.decrypt(CiphertextBlob=sealed)["Plaintext"] == b"x"


def pkcs8(key: Any) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.DER, form, serialization.NoEncryption()))


def test_key_pairs_and_mac_keys_come_in(kms: RunningKms) -> None:
    """An EC and an RSA key verify outside what they sign here; a MAC key gives the MACs of its bytes."""
    curve, long = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
    ecdsa = new_key(kms, KeySpec="ECC_NIST_P384", KeyUsage="SIGN_VERIFY")
    assert "KeyMaterialId" not in put(kms, ecdsa, pkcs8(curve), "RSAES_OAEP_SHA_256", "RSA_3072")
    signed = kms.admin.sign(KeyId=ecdsa, Message=b"m", SigningAlgorithm="ECDSA_SHA_384")["Signature"]
    curve.public_key().verify(signed, b"m", ec.ECDSA(hashes.SHA384()))
    pair = new_key(kms, KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")
    with refused("UnsupportedOperationException"):
        put(kms, pair, pkcs8(long))
    put(kms, pair, pkcs8(long), "RSA_AES_KEY_WRAP_SHA_256")
    signed = kms.admin.sign(KeyId=pair, Message=b"m", SigningAlgorithm="RSASSA_PKCS1_V1_5_SHA_256")["Signature"]
    long.public_key().verify(signed, b"m", padding.PKCS1v15(), hashes.SHA256())
    mac = new_key(kms, KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")
    put(kms, mac, bytes(range(40)))
    made = kms.admin.generate_mac(KeyId=mac, Message=b"m", MacAlgorithm="HMAC_SHA_256")["Mac"]
    other = hashes.Hash(hashes.SHA256())
    other.update(bytes(b ^ 0x36 for b in bytes(range(40)).ljust(64, b"\0")) + b"m")
    outer = hashes.Hash(hashes.SHA256())
    outer.update(bytes(b ^ 0x5C for b in bytes(range(40)).ljust(64, b"\0")) + other.finalize())
    assert made == outer.finalize()
    with refused("IncorrectKeyMaterialException"):
        put(kms, mac, bytes(range(41)))


def test_what_is_no_material_is_refused_alike(kms: RunningKms, key: str) -> None:
    """Wrong length, wrong curve, wrong wrapping, garbage: one class and no text."""
    ecdsa = new_key(kms, KeySpec="ECC_NIST_P384", KeyUsage="SIGN_VERIFY")
    other = pkcs8(ec.generate_private_key(ec.SECP256R1()))
    for name, material in ((key, bytes(31)), (key, bytes(33)), (ecdsa, other), (ecdsa, bytes(48))):
        with refused("InvalidCiphertextException") as error:
            put(kms, name, material)
        assert error["message"] == ""
    for algorithm, wrong in (("RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1"), (WRAPPINGS[3], WRAPPINGS[1])):
        given = kms.admin.get_parameters_for_import(KeyId=key, WrappingAlgorithm=algorithm, WrappingKeySpec="RSA_2048")
        for wrapped in (wrap(given["PublicKey"], wrong, bytes(32)), os.urandom(256), b"x"):
            with refused("InvalidCiphertextException") as error:
                kms.admin.import_key_material(
                    KeyId=key, ImportToken=given["ImportToken"], EncryptedKeyMaterial=wrapped, **FOREVER
                )
            assert error["message"] == ""
    assert state(kms, key) == "PendingImport"
    for algorithm, spec in (("RSAES_PKCS1_V1_5", "RSA_2048"), ("SM2PKE", "SM2")):
        with refused("UnsupportedOperationException"):
            kms.admin.get_parameters_for_import(KeyId=key, WrappingAlgorithm=algorithm, WrappingKeySpec=spec)


def test_a_token_is_of_one_key_and_one_day(kms: RunningKms, key: str) -> None:
    """Another key's, a changed and an old token are told apart; parameters end a day from now."""
    given = kms.admin.get_parameters_for_import(
        KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048"
    )
    left = given["ParametersValidTo"] - datetime.now(UTC)
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)
    wrapped = wrap(given["PublicKey"], "RSAES_OAEP_SHA_256", os.urandom(32))
    token = given["ImportToken"]
    for name, used in ((new_key(kms), token), (key, token[:-1] + bytes([token[-1] ^ 1])), (key, b"x")):
        with refused("InvalidImportTokenException"):
            kms.admin.import_key_material(KeyId=name, ImportToken=used, EncryptedKeyMaterial=wrapped, **FOREVER)


def test_validity_must_be_said(kms: RunningKms, key: str) -> None:
    """Expiry is the default and needs its date, in the future and within a year; without expiry there is no date."""
    soon = datetime.now(UTC) + timedelta(days=1)
    with refused("ValidationException") as error:
        put(kms, key, bytes(32), ExpirationModel="KEY_MATERIAL_EXPIRES")
    assert error["message"] == "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"
    for options in (
        {"ValidTo": datetime.now(UTC) - timedelta(days=1)},
        {"ValidTo": datetime.now(UTC) + timedelta(days=366)},
        {"ValidTo": soon} | FOREVER,
    ):
        with refused("ValidationException"):
            put(kms, key, bytes(32), **options)
    put(kms, key, os.urandom(32), ValidTo=soon)
    made = kms.admin.describe_key(KeyId=key)["KeyMetadata"]
    assert made["ExpirationModel"] == "KEY_MATERIAL_EXPIRES"
    assert abs(made["ValidTo"] - soon) < timedelta(seconds=1)


def test_material_expires_and_comes_back(kms: RunningKms, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At its date it is erased and the key waits again; the same material, and no other, revives it."""
    ahead = timedelta()

    def now() -> datetime:
        return datetime.now(UTC) + ahead

    def today(*, remove_tzinfo: bool = True) -> datetime:
        return now().replace(tzinfo=None) if remove_tzinfo else now()

    monkeypatch.setattr("botocore.auth.get_current_datetime", today)
    with running(config(tmp_path, clock=now)) as service:
        key, material = new_key(service), os.urandom(32)
        given = service.admin.get_parameters_for_import(
            KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_256", WrappingKeySpec="RSA_2048"
        )
        put(service, key, material, ValidTo=now() + timedelta(days=2))
        sealed = service.admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
        ahead = timedelta(days=2, minutes=1)
        with refused("KMSInvalidStateException") as error:
            service.admin.decrypt(CiphertextBlob=sealed)
        assert error["message"] == f"{ARN}{key} is pending import."
        wrapped = wrap(given["PublicKey"], "RSAES_OAEP_SHA_256", material)
        with refused("ExpiredImportTokenException"):
            service.admin.import_key_material(
                KeyId=key, ImportToken=given["ImportToken"], EncryptedKeyMaterial=wrapped, **FOREVER
            )
        with refused("IncorrectKeyMaterialException"):
            put(service, key, os.urandom(32))
        put(service, key, material)
        assert service.admin.decrypt(CiphertextBlob=sealed)["Plaintext"] == b"x"


def test_deleted_material_is_gone_from_the_files(in_a_file: RunningKms) -> None:
    """At once, wrapped or not; the key keeps its material's name; deleting twice is no error."""
    kms, key = in_a_file, new_key(in_a_file)
    name = put(kms, key, os.urandom(32))["KeyMaterialId"]
    path = kms.config.audit.parent / "kms.sqlite"
    with sqlite3.connect(path) as database:
        wrapped = database.execute("SELECT wrapped FROM materials WHERE key_id=?", (key,)).fetchone()[0]
    database.close()
    assert any(wrapped in file.read_bytes() for file in path.parent.glob("kms.sqlite*"))
    for _ in range(2):
        assert kms.admin.delete_imported_key_material(KeyId=key)["KeyMaterialId"] == name
    made = kms.admin.describe_key(KeyId=key)["KeyMetadata"]
    assert (made["KeyState"], made["CurrentKeyMaterialId"]) == ("PendingImport", name)
    assert "ExpirationModel" not in made
    assert all(wrapped not in file.read_bytes() for file in path.parent.glob("kms.sqlite*"))


def test_imported_keys_rotate_to_what_was_imported(kms: RunningKms, key: str) -> None:
    """New material waits, one at a time; a rotation takes it; the key works only while all of it is there."""
    first, second = os.urandom(32), os.urandom(32)
    with refused("KMSInvalidStateException"):
        kms.admin.rotate_key_on_demand(KeyId=key)
    old = put(kms, key, first)["KeyMaterialId"]
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    with refused("KMSInvalidStateException") as error:
        kms.admin.rotate_key_on_demand(KeyId=key)
    assert error["message"] == f"No available key material pending rotation for the key: {ARN}{key}."
    with refused("IncorrectKeyMaterialException"):
        put(kms, key, second)
    new = put(kms, key, second, ImportType="NEW_KEY_MATERIAL", KeyMaterialDescription="2027", **FOREVER)[
        "KeyMaterialId"
    ]
    with refused("KMSInvalidStateException") as error:
        put(kms, key, os.urandom(32), ImportType="NEW_KEY_MATERIAL", **FOREVER)
    assert f"because another key material (id: {new}) is pending rotation." in error["message"]
    assert kms.admin.describe_key(KeyId=key)["KeyMetadata"]["CurrentKeyMaterialId"] == old
    kms.admin.rotate_key_on_demand(KeyId=key)
    listed = kms.admin.list_key_rotations(KeyId=key, IncludeKeyMaterial="ALL_KEY_MATERIAL")["Rotations"]
    assert [(r["KeyMaterialId"], r["KeyMaterialState"], r["ImportState"]) for r in listed] == [
        (old, "NON_CURRENT", "IMPORTED"),
        (new, "CURRENT", "IMPORTED"),
    ]
    assert listed[1]["KeyMaterialDescription"] == "2027"
    assert kms.admin.decrypt(CiphertextBlob=sealed)["KeyMaterialId"] == old
    kms.admin.delete_imported_key_material(KeyId=key, KeyMaterialId=old)
    assert state(kms, key) == "PendingImport"
    with refused("IncorrectKeyMaterialException"):
        put(kms, key, second, KeyMaterialId=old, **FOREVER)
    put(kms, key, first, KeyMaterialId=old, **FOREVER)
    assert state(kms, key) == "Enabled"
    assert kms.admin.decrypt(CiphertextBlob=sealed)["Plaintext"] == b"x"


def test_only_keys_made_for_it_take_material(kms: RunningKms, key: str) -> None:
    """Origin decides, before the state; automatic rotation is for the others."""
    own = kms.admin.create_key()["KeyMetadata"]["KeyId"]
    text = f"{ARN}{own} origin is AWS_KMS which is not valid for this operation."
    with refused("UnsupportedOperationException") as error:
        kms.admin.get_parameters_for_import(KeyId=own, WrappingAlgorithm=WRAPPINGS[1], WrappingKeySpec="RSA_2048")
    assert error["message"] == text
    with refused("UnsupportedOperationException"):
        kms.admin.delete_imported_key_material(KeyId=own)
    for operation in (kms.admin.enable_key_rotation, kms.admin.get_key_rotation_status):
        with refused("UnsupportedOperationException") as error:
            operation(KeyId=key)
        assert error["message"] == f"{ARN}{key} origin is EXTERNAL which is not valid for this operation."
    kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    with refused("KMSInvalidStateException"):
        kms.admin.get_parameters_for_import(KeyId=key, WrappingAlgorithm=WRAPPINGS[1], WrappingKeySpec="RSA_2048")
    kms.admin.cancel_key_deletion(KeyId=key)
    assert state(kms, key) == "PendingImport"


def test_no_imported_secret_is_on_the_record(kms: RunningKms, key: str) -> None:
    """Neither material nor token is in the log or in the store, in any form."""
    material = os.urandom(32)
    put(kms, key, material)
    for file in kms.config.audit.parent.glob("*"):
        if file.is_file():
            data = file.read_bytes()
            forms = (material, material.hex().encode(), base64.b64encode(material))
            assert not any(form in data for form in forms), file.name
    record = next(r for r in reversed(kms.records()) if r["eventName"] == "ImportKeyMaterial")
    assert set(record["requestParameters"]) == {"keyId", "expirationModel"}
    assert record["readOnly"] is False


def test_names_of_material_outlive_the_root_key(tmp_path: Path) -> None:
    """After a new root key, erased material stays erased, the same comes back, and grant tokens are known."""
    settings = config(tmp_path)
    there, material = RootPlace.of(tmp_path / "secret" / "root.key"), os.urandom(32)
    with running(settings) as service:
        key = new_key(service)
        put(service, key, material)
        sealed = service.admin.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
        token = service.admin.create_grant(KeyId=key, GranteePrincipal=service.app_user.arn, Operations=["Encrypt"])[
            "GrantToken"
        ]
        service.admin.delete_imported_key_material(KeyId=key)
    with contextlib.closing(open_store(settings.store, there, exclusive=True)) as store:
        rootchange.rotate(store, there, None)
    with running(settings) as service:
        assert state(service, key) == "PendingImport"
        with refused("IncorrectKeyMaterialException"):
            put(service, key, os.urandom(32))
        put(service, key, material)
        assert service.admin.decrypt(CiphertextBlob=sealed, GrantTokens=[token])["Plaintext"] == b"x"
