"""The pytest plug-in: an enclave's security module and a KMS that trusts it, for an application's own unit tests.

Programs in other languages are tested as they run in an enclave, below the KMS proxy:

    subprocess.run(["node", "app.js", key], env=os.environ | alcove_kms_proxy)

    def test_the_secret_is_decrypted(alcove_nsm, alcove_kms):
        key = alcove_kms.create_key({"PCR0": alcove_nsm.pcr(0)})
        assert my_application.open(alcove_kms.encrypt(key, b"secret")) == b"secret"

pytest finds it when Alcove is installed; `-p no:alcove` leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from alcove.testing.local_kms import LocalKms
    from alcove.testing.simulated_nsm import SimulatedNSM


@pytest.fixture
def alcove_nsm() -> Iterator[SimulatedNSM]:
    """A simulated security module that the SDK asks during the test; `boot` gives it other registers."""
    from alcove.testing.simulated_nsm import SimulatedNSM  # noqa: PLC0415 - loaded in every run of pytest

    with SimulatedNSM() as nsm:
        yield nsm


@pytest.fixture
def alcove_kms(
    alcove_nsm: SimulatedNSM, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalKms]:
    """A real KMS that trusts `alcove_nsm`; the environment leads AWS's SDKs to it, as the application's user."""
    try:
        import boto3  # noqa: PLC0415 - as above

        from alcove.testing.local_kms import LocalKms  # noqa: PLC0415 - as above
    except ImportError as missing:
        pytest.fail(f"alcove_kms needs the packages of Alcove's extra `host` ({missing})", pytrace=False)
    with LocalKms(tmp_path_factory.mktemp("alcove-kms"), roots=[alcove_nsm.root]) as kms:
        for name, value in kms.environment.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials that it has found once
        yield kms


@pytest.fixture
def alcove_kms_proxy(alcove_kms: LocalKms) -> Iterator[dict[str, str]]:
    """What `alcove-enclave kms-proxy` adds to a program's environment, with such a proxy before `alcove_kms`."""
    from alcove.sdk.endpoint import Credentials  # noqa: PLC0415 - as above
    from alcove.sdk.servers.http_server import HttpServer  # noqa: PLC0415
    from alcove.sdk.servers.kms_proxy import KmsProxy, environment  # noqa: PLC0415

    local = Credentials.random()
    with HttpServer(KmsProxy(alcove_kms.endpoint, lambda: local)).serving() as url:
        yield environment(url, alcove_kms.region, local)
