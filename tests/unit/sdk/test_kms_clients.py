"""The plug-in under KMS clients that would clash with our own packages: they have a Python of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alcove.attestation import Root
from alcove.testing import LocalKms

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".peers" / "kms-clients" / "bin" / "python"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the programs in `kms_clients.py` got from a real KMS."""
    if not PYTHON.exists():
        pytest.skip("the KMS clients are missing: scripts/setup --tests")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(
        [PYTHON, Path(__file__).with_name("kms_clients.py")],
        env=plain | {"PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        enclave = json.loads(program.stdout.readline())
        with LocalKms(tmp_path_factory.mktemp("kms"), roots=[Root.from_pem(enclave["root"].encode())]) as kms:
            key = kms.create_key({"PCR0": enclave["pcr0"]})
            given = {"environment": kms.environment, "key": key, "ciphertext": kms.encrypt(key, b"secret")}
            said, _ = program.communicate(json.dumps(given) + "\n", timeout=120)
    assert program.returncode == 0
    return json.loads(said)


pytestmark = pytest.mark.slow


def test_aiobotocore_is_attested_without_holding_up_the_loop(found: Any) -> None:
    """An installed session and a client in a block get plaintexts; the module is asked in threads only."""
    expected = {"decrypted": ["secret"], "data_key": 32, "after_the_block": "AccessDeniedException"}
    assert found["async"] == expected | {"in_the_loop": False}


def test_the_aws_encryption_sdk_works_on_top(found: Any) -> None:
    """Messages go round with its master key provider and with the keyring of the material providers library."""
    assert found["sdk"] == {"provider": True, "keyring": True}
