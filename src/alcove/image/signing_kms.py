"""A key of a KMS that signs images: AWS's KMS or any service that speaks its API (eif.md §3.1).

The client is botocore's, with its default chain of credentials; AWS_ENDPOINT_URL_KMS sends it elsewhere. The region is
the ARN's. The message is hashed here, so that it may be of any length.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from alcove.errors import MachineError, UsageError

_ARN: Final = re.compile(
    r"arn:(?:aws|aws-cn|aws-us-gov):kms:([a-z0-9-]+):\d{12}:key[:/]([a-zA-Z0-9-]+)", re.ASCII
)  # eif.md §3.1
_ALGORITHMS: Final = {"sha256": "ECDSA_SHA_256", "sha384": "ECDSA_SHA_384", "sha512": "ECDSA_SHA_512"}


def is_key_arn(text: str) -> bool:
    """Whether this is a KMS key's ARN and not a path."""
    return _ARN.fullmatch(text) is not None


class KmsKey:
    """An asymmetric signing key in a KMS.

    Args:
        arn: One that `is_key_arn` accepts.
    """

    def __init__(self, arn: str) -> None:
        match = _ARN.fullmatch(arn)
        if match is None:
            raise ValueError("not the ARN of a KMS key")
        self._region = match[1]
        self._arn = arn.replace(":key:", ":key/")
        self._open: Any = None

    def public_key(self) -> object:
        """The key's public half.

        Raises:
            UsageError: The KMS refuses, or the key is not for signing.
            MachineError: The KMS cannot be reached, or what it answers is no key.
        """
        with self._asking("GetPublicKey"):
            answer = self._client().get_public_key(KeyId=self._arn)
        if answer.get("KeyUsage") != "SIGN_VERIFY":
            raise UsageError(
                f"the KMS key is for {answer.get('KeyUsage')} and not for signing",
                hint="make one with KeyUsage SIGN_VERIFY and KeySpec ECC_NIST_P384",
            )
        try:
            return serialization.load_der_public_key(answer["PublicKey"])
        except (KeyError, ValueError, TypeError, UnsupportedAlgorithm):
            raise MachineError("the KMS answered with something that is no public key") from None

    def sign(self, data: bytes, digest: hashes.HashAlgorithm) -> bytes:
        """An ECDSA signature in DER over a digest of `data`.

        Raises:
            UsageError: The KMS refuses.
            MachineError: The KMS cannot be reached.
        """
        hasher = hashes.Hash(digest)
        hasher.update(data)
        with self._asking("Sign"):
            answer = self._client().sign(
                KeyId=self._arn,
                Message=hasher.finalize(),
                MessageType="DIGEST",
                SigningAlgorithm=_ALGORITHMS[digest.name],
            )
        return bytes(answer.get("Signature", b""))

    def _client(self) -> Any:
        if self._open is None:
            import botocore.config  # noqa: PLC0415 - slow to load, and only these signers need it
            import botocore.session  # noqa: PLC0415

            config = botocore.config.Config(
                connect_timeout=10, read_timeout=30, retries={"mode": "standard", "max_attempts": 3}
            )
            session = botocore.session.get_session()
            self._open = session.create_client("kms", region_name=self._region, config=config)
        return self._open

    @contextlib.contextmanager
    def _asking(self, operation: str) -> Iterator[None]:
        try:
            import botocore.exceptions  # noqa: PLC0415 - as above
        except ImportError as error:
            raise MachineError("keys in a KMS need the package botocore", hint="pip install botocore") from error
        errors = botocore.exceptions
        try:
            yield
        except (errors.NoCredentialsError, errors.PartialCredentialsError) as error:
            raise UsageError(
                "there are no AWS credentials", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except errors.ClientError as error:
            told = error.response.get("Error", {})
            why = f"{told.get('Code', 'an error')} {told.get('Message', '')}".strip()
            hint = f"the caller needs kms:{operation} on {self._arn}"
            raise UsageError(f"the KMS refused {operation}: {why}", hint=hint) from error
        except (errors.BotoCoreError, ValueError) as error:
            hint = "AWS_ENDPOINT_URL_KMS names a KMS that is not AWS's"
            raise MachineError(f"the KMS did not answer {operation}: {error}", hint=hint) from error
