"""Key pairs and MAC keys: real boto3 against a real server, results checked outside of it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, mlkem, padding, rsa
from nacl.bindings import (
    crypto_sign_ed25519ph_final_verify,
    crypto_sign_ed25519ph_state,
    crypto_sign_ed25519ph_update,
)
from tests.unit.kms.postgres_harness import files_of
from tests.unit.kms.server_harness import ACCOUNT, RunningKms, config, refused, running

from alcove.kms import prehashed
from alcove.kms.material import private_key
from alcove.kms.specs import MEMBERS, SPECS
from alcove.kms.stores import is_postgres, open_store

pytestmark = pytest.mark.slow

HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
PAIRS = [(spec.name, usage) for spec in SPECS.values() for usage in spec.algorithms if spec.pair]
SIGNING = [(spec.name, algorithm) for spec in SPECS.values() for algorithm in spec.algorithms.get("SIGN_VERIFY", ())]
WHOLE = [case for case in SIGNING if case[1] != "ED25519_PH_SHA_512"]  # that one takes digests alone
BY_HASH = [case for case in SIGNING if case[1][-3:] in HASHES and case[1].startswith(("RSA", "ECDSA"))]
MACS = {"HMAC_224": 28, "HMAC_256": 32, "HMAC_384": 48, "HMAC_512": 64}
PAIR_SPECS = [name for name in SPECS if SPECS[name].pair and not name.startswith("ML_DSA")]


@pytest.fixture(scope="module")
def keys(kms: RunningKms) -> dict[tuple[str, str], str]:
    """One key of each spec and usage."""
    wanted = [(spec.name, usage) for spec in SPECS.values() for usage in spec.algorithms]
    return {
        (spec, usage): kms.admin.create_key(KeySpec=spec, KeyUsage=usage)["KeyMetadata"]["KeyId"]
        for spec, usage in wanted
    }


Keys = dict[tuple[str, str], str]


def public_key(kms: RunningKms, key_id: str) -> Any:
    return serialization.load_der_public_key(kms.admin.get_public_key(KeyId=key_id)["PublicKey"])


def check(public: Any, algorithm: str, message: bytes, signature: bytes) -> None:
    """Verification without any of the service's code."""
    if isinstance(public, rsa.RSAPublicKey):
        digest = HASHES[algorithm[-3:]]
        pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
        public.verify(signature, message, pss if "PSS" in algorithm else padding.PKCS1v15(), digest)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        public.verify(signature, message, ec.ECDSA(HASHES[algorithm[-3:]]))
    else:
        public.verify(signature, message)


@pytest.mark.parametrize(("spec", "usage"), PAIRS)
def test_a_pair_describes_itself(kms: RunningKms, keys: Keys, spec: str, usage: str) -> None:
    """The algorithms of its usage in KeyMetadata and GetPublicKey, no others; and a public key of its spec."""
    key_id = keys[spec, usage]
    described = kms.admin.describe_key(KeyId=key_id)["KeyMetadata"]
    got = kms.admin.get_public_key(KeyId=key_id)
    assert (described["KeySpec"], described["KeyUsage"]) == (got["KeySpec"], got["KeyUsage"]) == (spec, usage)
    assert described[MEMBERS[usage]] == got[MEMBERS[usage]] == list(SPECS[spec].algorithms[usage])
    assert len(set(described) & set(MEMBERS.values())) == len(set(got) & set(MEMBERS.values())) == 1
    assert "CurrentKeyMaterialId" not in described
    public = serialization.load_der_public_key(got["PublicKey"])
    if isinstance(public, rsa.RSAPublicKey):
        assert spec == f"RSA_{public.key_size}"
        assert public.public_numbers().e == 65537
    elif isinstance(public, ec.EllipticCurvePublicKey):
        names = {
            "secp256r1": "NIST_P256",
            "secp384r1": "NIST_P384",
            "secp521r1": "NIST_P521",
            "secp256k1": "SECG_P256K1",
        }
        assert spec == f"ECC_{names[public.curve.name]}"
    else:
        kinds = {
            "ECC_NIST_EDWARDS25519": ed25519.Ed25519PublicKey,
            "ML_DSA_44": mldsa.MLDSA44PublicKey,
            "ML_DSA_65": mldsa.MLDSA65PublicKey,
            "ML_DSA_87": mldsa.MLDSA87PublicKey,
            "ML_KEM_768": mlkem.MLKEM768PublicKey,
            "ML_KEM_1024": mlkem.MLKEM1024PublicKey,
        }
        assert isinstance(public, kinds[spec])


@pytest.mark.parametrize(("spec", "algorithm"), WHOLE)
def test_a_signature_verifies_here_and_elsewhere(kms: RunningKms, keys: Keys, spec: str, algorithm: str) -> None:
    """Under the public key by another program, and by Verify; a changed message or signature gives an error."""
    key_id, message = keys[spec, "SIGN_VERIFY"], b"m" * 4096
    made = kms.admin.sign(KeyId=key_id, Message=message, SigningAlgorithm=algorithm)
    assert made["KeyId"] == f"arn:aws:kms:us-east-1:{ACCOUNT}:key/{key_id}"
    public = public_key(kms, key_id)
    check(public, algorithm, message, made["Signature"])
    same = {"KeyId": key_id, "SigningAlgorithm": algorithm}
    assert kms.admin.verify(Message=message, Signature=made["Signature"], **same)["SignatureValid"] is True
    bad = bytes([made["Signature"][0] ^ 1]) + made["Signature"][1:]
    for text, signature in ((b"other", made["Signature"]), (message, bad), (message, b"x")):
        with refused("KMSInvalidSignatureException") as error:
            kms.admin.verify(Message=text, Signature=signature, **same)
        assert error["message"] == ""
        with pytest.raises(InvalidSignature):
            check(public, algorithm, text, signature)


@pytest.mark.parametrize(("spec", "algorithm"), BY_HASH)
def test_a_digest_gives_a_signature_of_its_message(kms: RunningKms, keys: Keys, spec: str, algorithm: str) -> None:
    """MessageType DIGEST, both ways; a digest of another length is refused."""
    options = {"KeyId": keys[spec, "SIGN_VERIFY"], "SigningAlgorithm": algorithm, "MessageType": "DIGEST"}
    digest = hashlib.new(f"sha{algorithm[-3:]}", b"message").digest()
    signature = kms.admin.sign(Message=digest, **options)["Signature"]
    check(public_key(kms, options["KeyId"]), algorithm, b"message", signature)
    assert kms.admin.verify(Message=digest, Signature=signature, **options)["SignatureValid"] is True
    for wrong in (digest[:-1], digest + b"x"):
        with refused("ValidationException") as error:
            kms.admin.sign(Message=wrong, **options)
        assert error["message"] == f"Digest is invalid length for algorithm {algorithm}."


@pytest.mark.parametrize(
    ("spec", "sizes"), [("ML_DSA_44", (1334, 2420)), ("ML_DSA_65", (1974, 3309)), ("ML_DSA_87", (2614, 4627))]
)
def test_an_external_mu_gives_a_signature_of_its_message(
    kms: RunningKms, keys: Keys, spec: str, sizes: tuple[int, int]
) -> None:
    """μ made outside as FIPS 204 says (kms.md §21); sizes of key and signature are the standard's."""
    options = {"KeyId": keys[spec, "SIGN_VERIFY"], "SigningAlgorithm": "ML_DSA_SHAKE_256", "MessageType": "EXTERNAL_MU"}
    spki = kms.admin.get_public_key(KeyId=options["KeyId"])["PublicKey"]
    public: Any = serialization.load_der_public_key(spki)
    key_hash = hashlib.shake_256(public.public_bytes_raw()).digest(64)
    mu = hashlib.shake_256(key_hash + b"\0\0" + b"message").digest(64)
    signature = kms.admin.sign(Message=mu, **options)["Signature"]
    assert (len(spki), len(signature)) == sizes
    public.verify(signature, b"message")
    assert kms.admin.verify(Message=mu, Signature=signature, **options)["SignatureValid"] is True
    with refused("ValidationException"):
        kms.admin.sign(Message=mu[:-1], **options)


def test_ed25519ph_hashes_the_digest_once_more(kms: RunningKms, keys: Keys) -> None:
    """As AWS's model says; libsodium agrees, and the pure scheme's signatures and messages are others."""
    options = {"KeyId": keys["ECC_NIST_EDWARDS25519", "SIGN_VERIFY"], "SigningAlgorithm": "ED25519_PH_SHA_512"}
    digest = hashlib.sha512(b"message").digest()
    signature = kms.admin.sign(Message=digest, MessageType="DIGEST", **options)["Signature"]
    same = {"Message": digest, "MessageType": "DIGEST", **options}
    assert kms.admin.verify(Signature=signature, **same)["SignatureValid"] is True
    public = public_key(kms, options["KeyId"])
    state = crypto_sign_ed25519ph_state()
    crypto_sign_ed25519ph_update(state, digest)
    assert crypto_sign_ed25519ph_final_verify(state, signature, public.public_bytes_raw())
    with pytest.raises(InvalidSignature):
        public.verify(signature, digest)
    for bad in (signature[:-1] + bytes([signature[-1] ^ 1]), signature[:-1], signature + b"x"):
        with refused("KMSInvalidSignatureException") as error:
            kms.admin.verify(Signature=bad, **same)
        assert error["message"] == ""
    with refused("ValidationException"):
        kms.admin.sign(Message=digest, MessageType="RAW", **options)
    with refused("ValidationException"):
        kms.admin.sign(Message=digest[:-1], MessageType="DIGEST", **options)


def test_ed25519ph_gives_the_rfcs_signature() -> None:
    """RFC 8032 §7.3, and a changed message."""
    secret = bytes.fromhex("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42")
    key = ed25519.Ed25519PrivateKey.from_private_bytes(secret)
    expected = (
        "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae41"
        "31f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406"
    )
    assert prehashed.sign(key, b"abc").hex() == expected
    prehashed.verify(key.public_key(), b"abc", bytes.fromhex(expected))
    with pytest.raises(InvalidSignature):
        prehashed.verify(key.public_key(), b"abd", bytes.fromhex(expected))


def test_openssl_verifies_too(kms: RunningKms, keys: Keys, tmp_path: Path) -> None:
    """Its program reads the public keys and accepts the signatures."""
    (tmp_path / "message").write_bytes(b"message")
    pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]
    cases = [
        ("RSA_3072", "RSASSA_PSS_SHA_384", pss), ("RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256", []),
        ("ECC_NIST_P384", "ECDSA_SHA_384", []), ("ECC_SECG_P256K1", "ECDSA_SHA_256", []),
    ]  # fmt: skip
    for spec, algorithm, options in cases:
        key_id = keys[spec, "SIGN_VERIFY"]
        (tmp_path / "key").write_bytes(kms.admin.get_public_key(KeyId=key_id)["PublicKey"])
        made = kms.admin.sign(KeyId=key_id, Message=b"message", SigningAlgorithm=algorithm)
        (tmp_path / "signature").write_bytes(made["Signature"])
        command = ["openssl", "dgst", f"-sha{algorithm[-3:]}", "-verify", "key", "-keyform", "DER", *options]
        done = subprocess.run(
            [*command, "-signature", "signature", "message"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.stdout == "Verified OK\n", done.stderr


@pytest.mark.parametrize(("spec", "size"), MACS.items())
def test_a_mac_is_rfc_2104s(kms: RunningKms, keys: Keys, spec: str, size: int) -> None:
    """The whole output, the same each time; a changed message or MAC is an error without a text."""
    algorithm = spec.replace("HMAC_", "HMAC_SHA_")
    options = {"KeyId": keys[spec, "GENERATE_VERIFY_MAC"], "MacAlgorithm": algorithm}
    made = kms.admin.generate_mac(Message=b"message", **options)
    secret = stored(kms, options["KeyId"])
    assert len(secret) == len(made["Mac"]) == size
    assert made["Mac"] == hmac.digest(secret, b"message", f"sha{spec[-3:]}")
    assert kms.admin.verify_mac(Message=b"message", Mac=made["Mac"], **options)["MacValid"] is True
    for message, mac in ((b"other", made["Mac"]), (b"message", made["Mac"][:-1]), (b"message", made["Mac"] + b"x")):
        with refused("KMSInvalidMacException") as error:
            kms.admin.verify_mac(Message=message, Mac=mac, **options)
        assert error["message"] == ""


def stored(kms: RunningKms, key_id: str) -> bytes:
    """Key material, out of the store with its root key."""
    with contextlib.closing(open_store(kms.config.store, kms.config.root_key)) as store:
        found = store.key("us-east-1", key_id)
        assert found is not None
        material = store.material(found, found.material_id)
    assert material is not None
    return material


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
@pytest.mark.parametrize("algorithm", ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"])
def test_rsa_encrypts_and_decrypts(kms: RunningKms, keys: Keys, bits: int, algorithm: str) -> None:
    """Up to the modulus less two hashes and two bytes; blocks that others made under the public key open too."""
    options = {"KeyId": keys[f"RSA_{bits}", "ENCRYPT_DECRYPT"], "EncryptionAlgorithm": algorithm}
    digest = hashes.SHA1() if algorithm.endswith("_1") else hashes.SHA256()  # noqa: S303
    most = bits // 8 - 2 * digest.digest_size - 2
    sealed = kms.admin.encrypt(Plaintext=b"x" * most, **options)
    assert len(sealed["CiphertextBlob"]) == bits // 8
    opened = kms.admin.decrypt(CiphertextBlob=sealed["CiphertextBlob"], **options)
    assert (opened["Plaintext"], opened["EncryptionAlgorithm"]) == (b"x" * most, algorithm)
    assert "KeyMaterialId" not in opened
    oaep = padding.OAEP(padding.MGF1(digest), digest, None)
    foreign = public_key(kms, options["KeyId"]).encrypt(b"from outside", oaep)
    assert kms.admin.decrypt(CiphertextBlob=foreign, **options)["Plaintext"] == b"from outside"
    with refused("ValidationException") as error:
        kms.admin.encrypt(Plaintext=b"x" * (most + 1), **options)
    assert error["message"] == (
        f"Algorithm {algorithm} and key spec RSA_{bits} cannot encrypt data larger than {most} bytes."
    )


def test_an_rsa_block_opens_whole_or_not_at_all(kms: RunningKms, keys: Keys) -> None:
    """Changed, cut, of another algorithm, without its key or with a context: never a plaintext."""
    options = {"KeyId": keys["RSA_2048", "ENCRYPT_DECRYPT"], "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"}
    block = kms.admin.encrypt(Plaintext=b"x", **options)["CiphertextBlob"]
    other = options | {"EncryptionAlgorithm": "RSAES_OAEP_SHA_1"}
    for changed, how in ((block[:-1] + bytes([block[-1] ^ 1]), options), (block[:-1], options), (block, other)):
        with refused("InvalidCiphertextException"):
            kms.admin.decrypt(CiphertextBlob=changed, **how)
    with refused("InvalidCiphertextException"):
        kms.admin.decrypt(CiphertextBlob=block, EncryptionAlgorithm="RSAES_OAEP_SHA_256")
    with refused("InvalidKeyUsageException"):
        kms.admin.decrypt(CiphertextBlob=block, KeyId=options["KeyId"])
    with refused("ValidationException"):
        kms.admin.decrypt(CiphertextBlob=block, EncryptionContext={"a": "b"}, **options)
    with refused("ValidationException"):
        kms.admin.encrypt(Plaintext=b"x", EncryptionContext={"a": "b"}, **options)


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521"])
def test_both_sides_derive_one_secret(kms: RunningKms, keys: Keys, spec: str) -> None:
    """The raw x coordinate, as wide as the field; two keys of the service agree as well."""
    key_id = keys[spec, "KEY_AGREEMENT"]
    public = public_key(kms, key_id)
    mine = ec.generate_private_key(public.curve)
    got = kms.admin.derive_shared_secret(KeyId=key_id, KeyAgreementAlgorithm="ECDH", PublicKey=spki(mine.public_key()))
    assert got["SharedSecret"] == mine.exchange(ec.ECDH(), public)
    assert len(got["SharedSecret"]) == (public.curve.key_size + 7) // 8
    assert (got["KeyOrigin"], got["KeyAgreementAlgorithm"]) == ("AWS_KMS", "ECDH")


def spki(public: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(public.public_bytes(serialization.Encoding.DER, form))


def test_a_peers_key_must_be_a_point_on_the_curve(kms: RunningKms, keys: Keys) -> None:
    """Not decodable: the recorded empty text. Another curve, another kind, or a point off the curve: refused too."""
    options = {"KeyId": keys["ECC_NIST_P256", "KEY_AGREEMENT"], "KeyAgreementAlgorithm": "ECDH"}
    with refused("ValidationException") as error:
        kms.admin.derive_shared_secret(PublicKey=b"junk", **options)
    assert error["message"] == ""
    good = spki(ec.generate_private_key(ec.SECP256R1()).public_key())
    off = good[:-1] + bytes([good[-1] ^ 1])
    others = [ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256K1())]
    wrong = [off, spki(ed25519.Ed25519PrivateKey.generate().public_key()), *(spki(key.public_key()) for key in others)]
    for public in wrong:
        for options["DryRun"] in (False, True):
            with refused("ValidationException"):
                kms.admin.derive_shared_secret(PublicKey=public, **options)


@pytest.mark.parametrize(("spec", "size"), [("ML_KEM_768", 1088), ("ML_KEM_1024", 1568)])
def test_an_encapsulated_secret_comes_out_again(kms: RunningKms, keys: Keys, spec: str, size: int) -> None:
    """Of the service's own and of others' making; a changed one gives another secret, a short one an error."""
    options = {"KeyId": keys[spec, "ENCAPSULATE_DECAPSULATE"], "EncapsulationAlgorithm": "ML_KEM"}
    made = kms.admin.encapsulate(**options)
    ciphertext = made["SharedSecretCiphertextBlob"]
    assert (len(made["SharedSecret"]), len(ciphertext)) == (32, size)
    again = kms.admin.decapsulate(SharedSecretCiphertextBlob=ciphertext, **options)
    assert again["SharedSecret"] == made["SharedSecret"]
    secret, foreign = public_key(kms, options["KeyId"]).encapsulate()
    assert kms.admin.decapsulate(SharedSecretCiphertextBlob=foreign, **options)["SharedSecret"] == secret
    changed = kms.admin.decapsulate(SharedSecretCiphertextBlob=b"\0" + ciphertext[1:], **options)["SharedSecret"]
    assert len(changed) == 32
    assert (changed == made["SharedSecret"]) == (ciphertext[0] == 0)
    with refused("InvalidCiphertextException"):
        kms.admin.decapsulate(SharedSecretCiphertextBlob=ciphertext[:-1], **options)


@pytest.mark.parametrize("spec", PAIR_SPECS)
def test_a_data_key_pair_opens_again(kms: RunningKms, keys: Keys, spec: str) -> None:
    """Plaintext, blob and public key are of one pair; the blob is bound to its context; never the same pair twice."""
    options = {
        "KeyId": keys["SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"],
        "KeyPairSpec": spec,
        "EncryptionContext": {"a": "b"},
    }
    made = kms.admin.generate_data_key_pair(**options)
    assert made["KeyPairSpec"] == spec
    opened = kms.admin.decrypt(CiphertextBlob=made["PrivateKeyCiphertextBlob"], EncryptionContext={"a": "b"})
    assert opened["Plaintext"] == made["PrivateKeyPlaintext"]
    assert opened["KeyMaterialId"] == made["KeyMaterialId"]
    private: Any = serialization.load_der_private_key(made["PrivateKeyPlaintext"], None)
    assert spki(private.public_key()) == made["PublicKey"]
    with refused("InvalidCiphertextException"):
        kms.admin.decrypt(CiphertextBlob=made["PrivateKeyCiphertextBlob"])
    wrapped = kms.admin.generate_data_key_pair_without_plaintext(**options)
    assert "PrivateKeyPlaintext" not in wrapped
    assert wrapped["PublicKey"] != made["PublicKey"]


def test_no_private_key_is_in_the_files(kms: RunningKms, keys: Keys) -> None:
    """Neither as PKCS#8 nor as the number that matters, raw, in hexadecimal or in base64."""
    forms = []
    for (spec, _), key_id in keys.items():
        material = stored(kms, key_id)
        secrets = [material]
        if SPECS[spec].pair:
            private = private_key(material)
            secrets.append(inner_secret(private))
        forms += [form for secret in secrets for form in (secret, secret.hex().encode(), base64.b64encode(secret))]
    assert min(map(len, forms)) >= 28
    beside = [file for file in kms.config.audit.parent.rglob("*") if file.is_file() and file != kms.config.root_key]
    database = files_of(kms.config.store) if is_postgres(kms.config.store) else []
    searched = {file: file.read_bytes() for file in (*beside, *database)}
    for key_id in keys.values():  # what is no secret is found, so these are the files
        assert any(key_id.encode() in data for file, data in searched.items() if file != kms.config.audit)
    assert [file for file, data in searched.items() if any(form in data for form in forms)] == []


def inner_secret(private: Any) -> bytes:
    """What an attacker looks for: the RSA prime, the EC scalar, the seed."""
    if isinstance(private, rsa.RSAPrivateKey):
        prime = private.private_numbers().p
        return prime.to_bytes((prime.bit_length() + 7) // 8)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return private.private_numbers().private_value.to_bytes((private.curve.key_size + 7) // 8)
    return bytes(private.private_bytes_raw())


def test_keys_outlive_the_service(tmp_path: Path) -> None:
    """After a restart the same key signs and verifies."""
    settings = config(tmp_path)
    with running(settings) as service:
        key_id = service.admin.create_key(KeySpec="ECC_NIST_P384", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
        before = service.admin.get_public_key(KeyId=key_id)["PublicKey"]
        options = {"KeyId": key_id, "Message": b"m", "SigningAlgorithm": "ECDSA_SHA_384"}
        signature = service.admin.sign(**options)["Signature"]
    with running(settings) as service:
        assert service.admin.get_public_key(KeyId=key_id)["PublicKey"] == before
        assert service.admin.verify(Signature=signature, **options)["SignatureValid"] is True
