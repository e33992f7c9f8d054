"""Run by the KMS clients' own Python: programs on aiobotocore and on the AWS Encryption SDK, in a simulated enclave.

It prints {"root", "pcr0"}, reads {"environment", "key", "ciphertext"}, and prints what the programs got.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import threading
from typing import Any

import aws_encryption_sdk
import boto3
import botocore.session
from aiobotocore.session import get_session
from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
from aws_cryptographic_material_providers.mpl.models import CreateAwsKmsKeyringInput
from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient, StrictAwsKmsMasterKeyProvider

from alcove.sdk import boto3 as plugin
from alcove.testing import SimulatedNSM

MESSAGE = b"the message" * 100
CONTEXT = {"purpose": "test"}


async def asynchronous(key: str, blob: bytes, nsm: SimulatedNSM) -> dict[str, Any]:
    """An installed session, and one client for a while; the loop is never asked to wait for the module."""
    threads = set()
    exchange = nsm.exchange

    def watched(request: bytes) -> bytes:
        threads.add(threading.current_thread() is threading.main_thread())
        return exchange(request)

    nsm.exchange = watched  # type: ignore[method-assign]
    session = get_session()
    plugin.install(session, keys=[key])
    async with session.create_client("kms") as kms:
        answers = await asyncio.gather(*(kms.decrypt(CiphertextBlob=blob) for _ in range(8)))
    async with get_session().create_client("kms") as kms:
        with plugin.attested(kms):
            made = await kms.generate_data_key(KeyId=key, KeySpec="AES_256")
        try:
            await kms.generate_data_key(KeyId=key, KeySpec="AES_256")
            refused = ""
        except kms.exceptions.ClientError as error:
            refused = error.response["Error"]["Code"]
    return {
        "decrypted": sorted({answer["Plaintext"].decode() for answer in answers}),
        "data_key": len(made["Plaintext"]),
        "after_the_block": refused,
        "in_the_loop": True in threads,
    }


def round_trip(client: EncryptionSDKClient, **source: Any) -> bool:
    """Encrypt and decrypt a message with its context."""
    ciphertext, _ = client.encrypt(source=MESSAGE, encryption_context=CONTEXT, **source)
    plaintext, header = client.decrypt(source=ciphertext, **source)
    return MESSAGE not in ciphertext and plaintext == MESSAGE and header.encryption_context["purpose"] == "test"


def encryption_sdk(key: str) -> dict[str, bool]:
    """Both ways of the AWS Encryption SDK: the master key provider, and the keyring of the material providers."""
    client = EncryptionSDKClient(commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
    session = botocore.session.Session()
    plugin.install(session)
    provider = StrictAwsKmsMasterKeyProvider(key_ids=[key], botocore_session=session)
    kms = boto3.client("kms")
    plugin.install(kms)
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    keyring = providers.create_aws_kms_keyring(CreateAwsKmsKeyringInput(kms_key_id=key, kms_client=kms))
    return {"provider": round_trip(client, key_provider=provider), "keyring": round_trip(client, keyring=keyring)}


def main() -> None:
    """Play the enclave."""
    with SimulatedNSM() as nsm:
        print(json.dumps({"root": nsm.root_pem.decode(), "pcr0": nsm.pcr(0).hex()}), flush=True)  # noqa: T201
        given = json.loads(sys.stdin.readline())
        os.environ.update(given["environment"])
        found = {"version": aws_encryption_sdk.__version__, "sdk": encryption_sdk(given["key"])}
        found["async"] = asyncio.run(asynchronous(given["key"], base64.b64decode(given["ciphertext"]), nsm))
        print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
