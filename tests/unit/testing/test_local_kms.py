from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

from alcove.sdk.kms import AttestedKms, Credentials
from alcove.sdk.tls import TcpTransport

pytest_plugins = ["pytester"]


def test_the_environment_leads_to_a_real_kms(alcove_kms: Any) -> None:
    """Plain boto3 finds endpoint, CA and credentials, and is refused for want of an attestation document."""
    key = alcove_kms.create_key({"PCR0": bytes(48)})
    with pytest.raises(ClientError, match="AccessDeniedException"):
        boto3.client("kms").generate_data_key(KeyId=key, KeySpec="AES_256")
    refusal = alcove_kms.records()[-1]
    assert (refusal["eventName"], refusal["errorCode"]) == ("GenerateDataKey", "AccessDeniedException")


def test_the_administrator_manages_and_does_not_decrypt(alcove_kms: Any) -> None:
    """A key of `create_key` is described by the administrator, and decrypts for enclaves alone."""
    key = alcove_kms.create_key({"PCR0": bytes(48)}, Description="d")
    assert alcove_kms.admin.describe_key(KeyId=key)["KeyMetadata"]["Description"] == "d"
    assert alcove_kms.encrypt(key, b"secret")


def test_the_plug_in_is_there_for_other_projects(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project's tests get both fixtures without any set-up, and the environment is put back."""
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    pytester.makepyfile(
        """
        import os, boto3
        from alcove.sdk.boto3 import install

        def test_application(alcove_nsm, alcove_kms):
            install(session := boto3.Session())
            key = alcove_kms.create_key({"PCR0": alcove_nsm.pcr(0)})
            made = session.client("kms").generate_data_key(KeyId=key, KeySpec="AES_256")
            assert len(made["Plaintext"]) == 32 and made["CiphertextBlob"]

        def test_after():
            assert os.environ["AWS_REGION"] == "eu-west-1"
        """
    )
    pytester.runpytest_inprocess("-q").assert_outcomes(passed=2)


PLAIN = """
import base64, boto3, sys
made = boto3.client("kms").generate_data_key(KeyId=sys.argv[1], KeySpec="AES_256")
print(len(made["Plaintext"]))
"""


def test_a_program_in_any_language_is_tested_below_a_proxy(
    alcove_nsm: Any, alcove_kms: Any, alcove_kms_proxy: dict[str, str]
) -> None:
    """A process that knows nothing of Alcove gets its data key with the fixture's environment, and that alone."""
    key = alcove_kms.create_key({"PCR0": alcove_nsm.pcr(0)})
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, key], env={"PATH": os.environ["PATH"], **alcove_kms_proxy},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "32\n"), done.stderr
    assert "recipient" in alcove_kms.records()[-1]["additionalEventData"]


def test_its_files_are_in_its_directory(alcove_kms: Any) -> None:
    """The private key of its certificate is its owner's alone."""
    directory = Path(alcove_kms.ca_file).parent
    assert (directory / "kms-tls.key").stat().st_mode & 0o777 == 0o600
    assert os.environ["AWS_CA_BUNDLE"] == str(alcove_kms.ca_file)


def test_the_sdk_s_own_client_uses_it(alcove_nsm: Any, alcove_kms: Any) -> None:
    """AttestedKms gets secrets, data keys, key pairs and shared secrets from it."""
    parts = urlsplit(alcove_kms.url)
    environment = alcove_kms.environment
    credentials = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    transport = TcpTransport("127.0.0.1", int(parts.port or 0))
    kms = AttestedKms("us-east-1", credentials, parts.netloc, ca_file=str(alcove_kms.ca_file), transport=transport)
    pcrs = {"PCR0": alcove_nsm.pcr(0)}
    key = alcove_kms.create_key(pcrs)
    made = kms.generate_data_key(key)
    assert kms.decrypt(made.ciphertext, key_id=key) == made.plaintext
    pair = kms.generate_data_key_pair(key, "ECC_NIST_P256")
    private = load_der_private_key(pair.private_key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    agreement = alcove_kms.create_key(pcrs, KeySpec="ECC_NIST_P256", KeyUsage="KEY_AGREEMENT")
    theirs = load_der_public_key(alcove_kms.admin.get_public_key(KeyId=agreement)["PublicKey"])
    assert isinstance(theirs, ec.EllipticCurvePublicKey)
    assert kms.derive_shared_secret(agreement, pair.public_key) == private.exchange(ec.ECDH(), theirs)
    assert repr(pair.private_key) not in repr(pair)
