"""A real Apache serves TLS with a key on the token, and takes up another one."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.apps.acm_device import PIN, certificate, ec_key, rsa_key, serving, token, unix_address
from tests.unit.apps.acm_kms import chain_pem
from tests.unit.apps.web_clients import eventually, page

from alcove.apps.acm import stanza, webserver, workers
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.mechanisms import Profile
from alcove.apps.acm.settings import OptionSettings
from alcove.apps.acm.token import Slots

APACHE = Path("/usr/sbin/apache2")
MODULES = Path("/usr/lib/apache2/modules")
CLIENT = next(Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so"), None)
URI = "pkcs11:model=p11ne-token;manufacturer=Amazon;serial=EVT00;token=web;id=%01;object=key1;type=private"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not APACHE.exists() or CLIENT is None, reason="`scripts/setup --tests` has not been run"),
]


class Apache:
    """Apache in the background, with a key on the token `web`."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.slots = directory, Slots(time.monotonic)
        self.slots.add(token("web", [ec_key()], profile=Profile.TLS))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.write(ec_key())
        (directory / "index.html").write_text("hello")
        modules = "\n".join(
            f"LoadModule {name}_module {MODULES}/mod_{name}.so"
            for name in ("mpm_event", "authz_core", "socache_shmcb", "ssl", "dir")
        )
        user = "User nobody\nGroup nogroup\n" if os.getuid() == 0 else ""
        text = (
            f"ServerRoot {directory}\nPidFile {directory}/httpd.pid\nErrorLog {directory}/error.log\n{modules}\n"
            f"Mutex file:{directory} default\nServerName localhost\nListen 127.0.0.1:{self.port}\n"
            f"DocumentRoot {directory}\nDirectoryIndex index.html\nSSLCryptoDevice pkcs11\nSSLEngine on\n{user}"
        )
        uri = stanza.key_uri(URI, PIN.decode())
        (directory / "httpd.conf").write_text(stanza.apache(text, uri, directory / "chain.pem"))

    def write(self, key: KeyPair) -> None:
        """The certificate's file."""
        (self.directory / "chain.pem").write_text(chain_pem(certificate(key)))

    def start(self) -> None:
        """As its service does."""
        environment = os.environ | {
            "P11_KIT_SERVER_ADDRESS": unix_address(self.directory),
            "PKCS11_MODULE_PATH": str(CLIENT),
        }
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


@pytest.fixture
def apache(tmp_path: Path) -> Iterator[Apache]:
    for part in (tmp_path, *tmp_path.parents):  # Apache's children are another user, and pass through
        if part.stat().st_uid == os.getuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o011)
    made = Apache(tmp_path)
    with serving(made.slots, unix_address(tmp_path)):
        (tmp_path / "p11.sock").chmod(0o666)
        made.start()
        try:
            yield made
        finally:
            made.end()


def test_apache_serves_with_a_key_on_the_token(apache: Apache) -> None:
    """Through SSLCryptoDevice pkcs11 and the lines that the agent writes, in TLS 1.2 and 1.3; each uses the key."""
    expected = (apache.directory / "chain.pem").read_text()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        before = apache.slots.token(0).uses
        assert apache.get(version) == expected
        assert apache.slots.token(0).uses > before


def test_apache_takes_up_another_key(apache: Apache) -> None:
    """The token is replaced by one with another key and the file is changed: a restart by command serves both."""
    apache.get()
    apache.slots.replace(0, token("web", [rsa_key()], profile=Profile.TLS))
    apache.write(rsa_key())
    place = apache.directory
    stop_and_start = f"""
        kill $(cat {place}/httpd.pid); while [ -e {place}/httpd.pid ]; do sleep 0.05; done
        P11_KIT_SERVER_ADDRESS={unix_address(place)} PKCS11_MODULE_PATH={CLIENT} {APACHE} -f {place}/httpd.conf -k start
    """
    command = ("sh", "-c", stop_and_start)
    webserver.apply(OptionSettings("httpd", 600, command, place / "httpd.pid", place, place, None))
    eventually(lambda: apache.serves((place / "chain.pem").read_text()))
