"""A real nginx and the agent, with everything real but the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from tests.unit.apps.acm_kms import Parts, parts
from tests.unit.apps.test_acm_agent import agent, born
from tests.unit.apps.test_acm_webserver import NGINX, Nginx
from tests.unit.apps.web_clients import clients_without_a_pause, eventually

CLIENT = next(Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so"), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None or CLIENT is None, reason="`scripts/setup --tests` has not been run"),
]


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with parts(tmp_path_factory.mktemp("kms")) as found:
        yield found


def test_a_renewal_and_a_death_of_the_enclave(kms: Parts, tmp_path: Path) -> None:
    """Under load a renewal loses no connection; without its enclave nginx serves nobody; with the next one it does."""
    with agent(kms, tmp_path, born(tmp_path), pid_file=str(tmp_path / "nginx" / "nginx.pid")) as running:
        eventually(running.sign)
        (tmp_path / "nginx").mkdir()
        nginx = Nginx(
            tmp_path / "nginx",
            tmp_path / "web.conf",
            {"P11_KIT_SERVER_ADDRESS": f"unix:path={tmp_path}/run/p11.sock", "PKCS11_MODULE_PATH": str(CLIENT)},
        )
        try:
            renewed_under_load(nginx, tmp_path / "keys" / f"{b'web'.hex()}.json")
            served = running.certificate()
            running.launcher.kill()
            eventually(lambda: not serves(nginx))
            eventually(lambda: running.launcher.starts == 2 and serves(nginx))
            eventually(lambda: not (tmp_path / "nginx" / "nginx.pid.oldbin").exists())  # its workers serve no more
            assert x509.load_der_x509_certificate(nginx.get()) == served
        finally:
            nginx.end()


def renewed_under_load(nginx: Nginx, kept: Path) -> None:
    """Without the kept key another is born at the next round; meanwhile clients come without a pause."""
    first = nginx.get()
    with clients_without_a_pause(nginx.get) as seen:
        kept.unlink()
        eventually(lambda: bool(seen) and seen[-1] != first)
        before = len(seen)
        eventually(lambda: len(seen) > before + 5)


def serves(nginx: Nginx) -> bool:
    """Whether a page comes now."""
    try:
        return bool(nginx.get())
    except OSError:
        return False
