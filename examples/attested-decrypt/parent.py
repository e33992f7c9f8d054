"""The parent's side: plain boto3 for the key and the ciphertext, the enclave's socket for the question.

    parent.py create-key --pcr0 HEX                     prints the key's ARN
    parent.py encrypt KEY FILE                          prints the ciphertext in base64
    parent.py decrypt KEY FILE --expect-refusal         tries it without an enclave; succeeds when that is refused
    parent.py ask ENCLAVE-ID decrypt --key KEY --ciphertext FILE
    parent.py ask ENCLAVE-ID attest --nonce HEX --output FILE

boto3 finds the endpoint, the credentials and the CA in the environment: AWS_ENDPOINT_URL_KMS, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_CA_BUNDLE, AWS_REGION.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import ask as enclave
import boto3
from botocore.exceptions import BotoCoreError, ClientError

REGION = os.environ.get("AWS_REGION", "us-east-1")


def create_key(arguments: argparse.Namespace) -> None:
    """A key that administrators manage and only the enclave with this PCR0 decrypts with."""
    kms = boto3.client("kms", region_name=REGION)
    account = boto3_account()
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "Administrators manage and encrypt; they do not decrypt",
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:aws:iam::{account}:root"},
                "Action": [
                    "kms:DescribeKey", "kms:GetKeyPolicy", "kms:PutKeyPolicy", "kms:Encrypt", "kms:ScheduleKeyDeletion",
                ],
                "Resource": "*",
            },
            {
                "Sid": "Only this enclave image decrypts",
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:aws:iam::{account}:root"},
                "Action": "kms:Decrypt",
                "Resource": "*",
                "Condition": {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": arguments.pcr0}},
            },
        ],
    }  # fmt: skip
    key = kms.create_key(Description="attested-decrypt", Policy=json.dumps(policy))
    print(key["KeyMetadata"]["Arn"])


def boto3_account() -> str:
    """The account of our own user, which ``alcove kms user add`` printed with its ARN."""
    return os.environ["AWS_ACCOUNT_ID"]


def encrypt(arguments: argparse.Namespace) -> None:
    """Encrypt a file; the parent may do this."""
    kms = boto3.client("kms", region_name=REGION)
    answer = kms.encrypt(KeyId=arguments.key, Plaintext=arguments.file.read_bytes())
    print(base64.b64encode(answer["CiphertextBlob"]).decode())


def decrypt(arguments: argparse.Namespace) -> int:
    """Decrypt without an enclave: this must be refused."""
    kms = boto3.client("kms", region_name=REGION)
    try:
        kms.decrypt(KeyId=arguments.key, CiphertextBlob=base64.b64decode(arguments.file.read_text()))
    except ClientError as error:
        print(f"{error.response['Error']['Code']}: {error.response['Error']['Message']}")
        return 0 if arguments.expect_refusal else 1
    print("the parent could decrypt")
    return 1 if arguments.expect_refusal else 0


def ask(arguments: argparse.Namespace) -> int:
    """Send the enclave one request and print its answer; status 1 when that is an error."""
    request: dict[str, object]
    if arguments.what == "decrypt":
        endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL_KMS"])
        request = {
            "op": "decrypt",
            "key_id": arguments.key,
            "ciphertext": arguments.ciphertext.read_text().strip(),
            "region": REGION,
            "endpoint_host": endpoint.netloc,
            "credentials": {
                "access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
                "secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
            },
        }
    else:
        request = {"op": "attest", "nonce": arguments.nonce}
    answer = enclave.ask(arguments.enclave_id, request)
    if "document" in answer:
        document = base64.b64decode(answer["document"])
        arguments.output.write_bytes(document)
        answer = {"document": str(arguments.output), "bytes": len(document)}
    print(json.dumps(answer, indent=2))
    return 1 if "error" in answer else 0


def main() -> int:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("create-key")
    command.add_argument("--pcr0", required=True)
    command.set_defaults(handler=create_key)
    for name, handler in (("encrypt", encrypt), ("decrypt", decrypt)):
        command = commands.add_parser(name)
        command.add_argument("key")
        command.add_argument("file", type=Path)
        command.add_argument("--expect-refusal", action="store_true")
        command.set_defaults(handler=handler)
    command = commands.add_parser("ask")
    command.add_argument("enclave_id")
    command.add_argument("what", choices=("decrypt", "attest"))
    command.add_argument("--key")
    command.add_argument("--ciphertext", type=Path)
    command.add_argument("--nonce", default="")
    command.add_argument("--output", type=Path, default=Path("document.cbor"))
    command.set_defaults(handler=ask)
    arguments = parser.parse_args()
    try:
        return int(arguments.handler(arguments) or 0)
    except KeyError as error:
        print(f"parent.py: error: {error} is not set", file=sys.stderr)
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        print(f"parent.py: error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
