"""nginx 1.29 and later serve through OpenSSL's provider: the stanza's other form, with Debian's newest programs."""

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
from tests.ports import free_port
from tests.unit.apps.acm_device import PIN, certificate, ec_key, rsa_key, serving, token, unix_address
from tests.unit.apps.acm_kms import chain_pem
from tests.unit.apps.test_acm_webserver import eventually

from alcove.apps.acm import stanza, webserver
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.mechanisms import Profile
from alcove.apps.acm.settings import OptionSettings
from alcove.apps.acm.token import Slots

TREE = Path(__file__).parents[3] / ".peers" / "newer" / "usr"
PROVIDER = next(TREE.glob("lib/*/ossl-modules/pkcs11.so"), None)
CLIENT = next(TREE.glob("lib/*/pkcs11/p11-kit-client.so"), None)
NAMES = "client_body", "proxy", "fastcgi", "uwsgi", "scgi"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROVIDER is None or CLIENT is None, reason="needs Debian's next release: scripts/setup --tests"),
]


class Nginx:
    """Debian's newest nginx over its own libraries, with a server for the key of each id."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.ports = directory, {1: free_port(), 2: free_port()}
        (directory / "index.html").write_text("hello")
        (directory / "openssl.cnf").write_text(
            "openssl_conf = i\n[i]\nproviders = p\n[p]\ndefault = d\npkcs11 = k\n[d]\nactivate = 1\n"
            f"[k]\nmodule = {inside(PROVIDER)}\npkcs11-module-path = {inside(CLIENT)}\nactivate = 1\n"
        )
        temporary = "".join(f"{name}_temp_path {directory}/{name};" for name in NAMES)
        servers = "".join(
            f"server {{ listen 127.0.0.1:{port} ssl; include {directory}/{number}.conf; root {directory}; }}\n"
            for number, port in self.ports.items()
        )
        user = "user root;" if os.getuid() == 0 else ""
        (directory / "nginx.conf").write_text(
            f"{user} worker_processes 2; pid {directory}/nginx.pid; error_log {directory}/error.log;"
            f" lock_file {directory}/lock; env OPENSSL_CONF; env P11_KIT_SERVER_ADDRESS; events {{ }}\n"
            f"http {{ access_log off; {temporary} {servers} }}"
        )

    def write(self, number: int, key: KeyPair) -> None:
        """What the agent writes for the key of an id."""
        chain = self.directory / f"chain{number}.pem"
        chain.write_text(chain_pem(certificate(key)))
        uri = stanza.key_uri(
            f"pkcs11:model=p11ne-token;manufacturer=Amazon;serial=EVT00;token=web;id=%0{number};object=key{number};type=private",
            PIN.decode(),
        )
        (self.directory / f"{number}.conf").write_text(stanza.nginx(uri, chain, "provider"))

    def start(self) -> None:
        """In the background."""
        environment = {
            "PATH": "/usr/bin",
            "OPENSSL_CONF": str(self.directory / "openssl.cnf"),
            "P11_KIT_SERVER_ADDRESS": unix_address(self.directory),
        }
        links = [part for name in ("lib", "lib64", "bin") for part in ("--symlink", f"usr/{name}", f"/{name}")]
        accounts = [part for name in ("/etc/passwd", "/etc/group") for part in ("--ro-bind", name, name)]
        command = ["bwrap", "--ro-bind", TREE, "/usr", *links, *accounts, "--dev", "/dev", "--proc", "/proc"]
        command += ["--bind", self.directory, self.directory, "/usr/sbin/nginx", "-c", self.directory / "nginx.conf"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        eventually(lambda: self.pid is not None)

    @property
    def pid(self) -> int | None:
        """The master's."""
        return webserver.running(self.directory / "nginx.pid")

    def get(self, number: int, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> str:
        """The certificate that serves at a key's port, after a whole page."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", self.ports[number]), 60) as plain,
            context.wrap_socket(plain) as secure,
        ):
            secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
            text = b""
            while chunk := secure.recv(4096):
                text += chunk
            assert text.endswith(b"hello")
            return ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True) or b"")

    def end(self) -> None:
        """The master, and one that is still finishing."""
        for name in ("nginx.pid", "nginx.pid.oldbin"):
            pid = webserver.running(self.directory / name)
            if pid is not None:
                os.kill(pid, signal.SIGTERM)
        eventually(lambda: not (self.directory / "nginx.pid").exists())


def inside(path: Path | None) -> str:
    """Where a file of the tree is for programs that run in it."""
    assert path is not None
    return f"/usr/{path.relative_to(TREE)}"


@pytest.fixture
def slots() -> Slots:
    made = Slots(time.monotonic)
    made.add(token("web", [rsa_key(), ec_key()], profile=Profile.TLS))
    return made


@pytest.fixture
def nginx(tmp_path: Path, slots: Slots) -> Iterator[Nginx]:
    made = Nginx(tmp_path)
    made.write(1, rsa_key())
    made.write(2, ec_key())
    with serving(slots, unix_address(tmp_path)):
        made.start()
        try:
            yield made
        finally:
            made.end()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nginx_serves_through_the_provider(nginx: Nginx, slots: Slots, version: ssl.TLSVersion) -> None:
    """RSA-2048 and P-256 by `store:` URIs; each page uses a key."""
    for number in (1, 2):
        before = slots.token(0).uses
        assert nginx.get(number, version) == (nginx.directory / f"chain{number}.pem").read_text()
        assert slots.token(0).uses > before


def test_nginx_takes_up_another_key(nginx: Nginx, slots: Slots) -> None:
    """A new master finds what took the token's place; the pages of the other key go on."""
    for number in (1, 2):
        nginx.get(number)
    slots.replace(0, token("web", [ec_key(), ec_key()], profile=Profile.TLS))
    nginx.write(1, ec_key())
    place = nginx.directory
    said = webserver.apply(OptionSettings("nginx", 600, (), place / "nginx.pid", place, place, None))
    assert said.startswith("nginx went on as process")
    eventually(lambda: not (place / "nginx.pid.oldbin").exists())
    for number in (1, 2):
        assert nginx.get(number) == (place / f"chain{number}.pem").read_text()
