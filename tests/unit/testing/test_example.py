"""The boto3 program that gets a data key in a real enclave (tests/vm/test_kms_clients.py), here without one."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from botocore.exceptions import ClientError

from alcove.sdk.boto3 import install
from alcove.sdk.errors import NotInEnclaveError
from alcove.testing import LocalKms, SimulatedNSM

PROGRAM = Path(__file__).parents[3] / "examples" / "kms-clients" / "app.py"


@pytest.fixture
def application() -> ModuleType:
    """The program's module, as it goes into the image."""
    spec = importlib.util.spec_from_file_location("application", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_same_application_runs_on_a_simulated_module(
    application: ModuleType, alcove_nsm: SimulatedNSM, alcove_kms: LocalKms
) -> None:
    """The same file, the same `install()`, the same checks of KMS: a data key for this image, and none for another."""
    install()
    key = alcove_kms.create_key({"PCR0": alcove_nsm.pcr(0)})
    found = application.data_key(key)
    assert found["key_id"] == key
    assert re.fullmatch("[0-9a-f]{64}", found["sha256"])
    alcove_nsm.boot({"PCR0": "ab" * 48})
    with pytest.raises(ClientError, match="AccessDenied"):
        application.data_key(key)


def test_without_a_module_the_application_says_where_it_is_not(
    application: ModuleType, alcove_kms: LocalKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stands in for the module when nobody asks for that."""
    monkeypatch.setattr("alcove.sdk.nsm._process.client", None)
    install()
    with pytest.raises(NotInEnclaveError, match="not in an enclave"):
        application.data_key("alias/any")
