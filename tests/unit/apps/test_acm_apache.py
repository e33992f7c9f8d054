"""A real Apache serves TLS with a key on the token, and takes up another one."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.ports import free_port
from tests.unit.apps.acm_device import PIN, certificate, ec_key, rsa_key, serving, token, unix_address
from tests.unit.apps.acm_kms import chain_pem
from tests.unit.apps.web_clients import clients_without_a_pause, eventually, page

from alcove.apps.acm import stanza, webserver, workers
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.mechanisms import Profile
from alcove.apps.acm.settings import OptionSettings
from alcove.apps.acm.token import Slots

APACHE = Path("/usr/sbin/apache2")
MODULES = Path("/usr/lib/apache2/modules")
CLIENT = next(Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so"), None)
PROVIDER = next((Path(__file__).parents[3] / ".peers" / "usr" / "lib").glob("*/ossl-modules/pkcs11.so"), None)
URI = "pkcs11:model=p11ne-token;manufacturer=Amazon;serial=EVT00;token=web;id=%01;object=key1;type=private"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not APACHE.exists() or CLIENT is None or PROVIDER is None, reason="`scripts/setup --tests` has not been run"
    ),
]


class Apache:
    """Apache in the background, with a key on the token `web`, through OpenSSL's engine or provider."""

    def __init__(self, directory: Path, form: str) -> None:
        self.directory, self.slots, self.form = directory, Slots(time.monotonic), form
        self.slots.add(token("web", [ec_key()], profile=Profile.TLS))
        self.port = free_port()
        (directory / "index.html").write_text("hello")
        modules = "\n".join(
            f"LoadModule {name}_module {MODULES}/mod_{name}.so"
            for name in ("mpm_event", "authz_core", "socache_shmcb", "ssl", "dir")
        )
        user = "User nobody\nGroup nogroup\n" if os.getuid() == 0 else ""
        text = (
            f"ServerRoot {directory}\nPidFile {directory}/httpd.pid\nErrorLog {directory}/error.log\n{modules}\n"
            f"Mutex file:{directory} default\nServerName localhost\nListen 127.0.0.1:{self.port}\n"
            f"DocumentRoot {directory}\nDirectoryIndex index.html\nSSLEngine on\n{user}"
        )
        text += "SSLCryptoDevice pkcs11\n" if form == "engine" else ""
        (directory / "httpd.conf").write_text(text)
        self.name(ec_key(), 1)

    @property
    def options(self) -> OptionSettings:
        """What the agent has."""
        place = self.directory
        return OptionSettings("httpd", 600, (), place / "httpd.pid", place, place, None)

    def name(self, key: KeyPair, number: int) -> None:
        """Key and certificate, as the agent writes them."""
        self.write(key)
        uri = stanza.key_uri(URI.replace("%01", f"%0{number}").replace("key1", f"key{number}"), PIN.decode())
        file = self.directory / "httpd.conf"
        file.write_text(stanza.apache(file.read_text(), uri, self.directory / "chain.pem"))

    def write(self, key: KeyPair) -> None:
        """The certificate's file."""
        (self.directory / "chain.pem").write_text(chain_pem(certificate(key)))

    @property
    def environment(self) -> dict[str, str]:
        """Where it finds the token."""
        found = {"P11_KIT_SERVER_ADDRESS": unix_address(self.directory)}
        if self.form == "engine":
            return found | {"PKCS11_MODULE_PATH": str(CLIENT)}
        (self.directory / "openssl.cnf").write_text(
            "openssl_conf = i\n[i]\nproviders = p\n[p]\ndefault = d\npkcs11 = k\n[d]\nactivate = 1\n"
            f"[k]\nmodule = {PROVIDER}\npkcs11-module-path = {CLIENT}\nactivate = 1\n"
        )
        # where there is an engine mod_ssl takes it
        return found | {"OPENSSL_CONF": str(self.directory / "openssl.cnf"), "OPENSSL_ENGINES": "/nonexistent"}

    def start(self) -> None:
        """As its service does."""
        environment = os.environ | self.environment
        command = [APACHE, "-f", self.directory / "httpd.conf", "-k", "start"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        eventually(lambda: workers.running(self.directory / "httpd.pid") is not None)

    def get(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str:
        """The server's certificate, PEM, after a whole page."""
        return ssl.DER_cert_to_PEM_cert(page(self.port, version))

    def serves(self, expected: str) -> bool:
        """Whether it sends this certificate now."""
        try:
            return self.get() == expected
        except OSError:
            return False

    def end(self) -> None:
        """And wait for it."""
        pid = workers.running(self.directory / "httpd.pid")
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: not (self.directory / "httpd.pid").exists())


@pytest.fixture(params=["engine", "provider"])
def apache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Apache]:
    for part in (tmp_path, *tmp_path.parents):  # Apache's children are another user, and pass through
        if part.stat().st_uid == os.getuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o011)
    made = Apache(tmp_path, request.param)
    with serving(made.slots, unix_address(tmp_path)):
        (tmp_path / "p11.sock").chmod(0o666)
        made.start()
        try:
            yield made
        finally:
            made.end()


def test_apache_serves_with_a_key_on_the_token(apache: Apache) -> None:
    """Through the lines that the agent writes, in TLS 1.2 and 1.3; each uses the key."""
    expected = (apache.directory / "chain.pem").read_text()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        before = apache.slots.token(0).uses
        assert apache.get(version) == expected
        assert apache.slots.token(0).uses > before


@pytest.mark.parametrize("apache", ["engine"], indirect=True)  # through the provider it loses some, and is restarted
def test_changes_under_load_lose_no_connection(apache: Apache) -> None:
    """Twice another key, as the agent puts it beside the one before, and a graceful restart: every page comes whole."""
    with clients_without_a_pause(apache.get, 3) as seen:
        eventually(lambda: len(seen) > 5)
        third = ec_key(ec.SECP384R1)
        for key, keys, number in ((rsa_key(), [ec_key(), rsa_key()], 2), (third, [third, rsa_key()], 1)):
            apache.slots.replace(0, token("web", keys, profile=Profile.TLS))
            apache.name(key, number)
            children = set(workers.of(workers.running(apache.options.pid_file) or 0))
            said = webserver.apply(apache.options, keeps_session=True)
            assert said == f"httpd went on gracefully as process {workers.running(apache.options.pid_file)}"
            expected = (apache.directory / "chain.pem").read_text()
            eventually(lambda expected=expected: bool(seen) and seen[-1] == expected)  # type: ignore[misc]
            before = len(seen)
            eventually(lambda before=before: len(seen) > before + 20)  # type: ignore[misc]
            # a key lives for one more change alone: those that have the one before must have ended
            eventually(lambda children=children: not any(Path(f"/proc/{pid}").exists() for pid in children))  # type: ignore[misc]
    assert len(set(seen)) == 3


def test_apache_takes_up_another_key(apache: Apache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is replaced by one with another key and the file is changed: a restart by command serves both."""
    apache.get()
    second = ec_key(ec.SECP384R1)  # Debian 12's p11-kit does not pass on what the provider asks for with RSA
    apache.slots.replace(0, token("web", [second], profile=Profile.TLS))
    apache.write(second)
    place = apache.directory
    stop_and_start = f"""
        kill $(cat {place}/httpd.pid); while [ -e {place}/httpd.pid ]; do sleep 0.05; done
        {APACHE} -f {place}/httpd.conf -k start
    """
    for name, value in apache.environment.items():
        monkeypatch.setenv(name, value)
    command = ("sh", "-c", stop_and_start)
    webserver.apply(OptionSettings("httpd", 600, command, place / "httpd.pid", place, place, None))
    eventually(lambda: apache.serves((place / "chain.pem").read_text()))
