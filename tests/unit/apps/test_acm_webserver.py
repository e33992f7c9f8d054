"""A real nginx takes up a change without a connection lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.ports import free_port
from tests.unit.apps.acm_device import certificate, ec_key, rsa_key
from tests.unit.apps.acm_kms import pem
from tests.unit.apps.web_clients import PATIENCE, clients_without_a_pause, eventually, page

from alcove.apps.acm import webserver, workers
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.settings import OptionSettings
from alcove.errors import MachineError

PEERS = Path(__file__).parents[3] / ".peers" / "usr" / "sbin" / "nginx"
NGINX = shutil.which("nginx", path="/usr/sbin") or (str(PEERS) if PEERS.exists() else None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="`scripts/setup --tests` has not been run"),
]


class Nginx:
    """nginx in the background, with a key in a file, or with what another file says of key and certificate."""

    def __init__(
        self, directory: Path, stanza: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.put(ec_key())
        (directory / "index.html").write_text("hello")
        temporary = "".join(
            f"{name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.getuid() == 0 else ""
        pair = f"ssl_certificate {directory}/chain.pem; ssl_certificate_key {directory}/key.pem;"
        if stanza is not None:
            user += "ssl_engine pkcs11; env P11_KIT_SERVER_ADDRESS; env PKCS11_MODULE_PATH;"
            pair = f"include {stanza};"
        (directory / "nginx.conf").write_text(
            f"{user} worker_processes 2; pid {directory}/nginx.pid; error_log {directory}/error.log;"
            f" lock_file {directory}/lock; events {{ }}\n"
            f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{self.port} ssl;"
            f" {pair} root {directory}; }} }}"
        )
        command = [str(NGINX), "-c", str(directory / "nginx.conf")]
        known = os.environ | dict(environment or {})
        subprocess.run(command, env=known, check=True, capture_output=True, timeout=60)
        eventually(lambda: self.pid is not None)

    @property
    def pid(self) -> int | None:
        """The master's."""
        return workers.running(self.directory / "nginx.pid")

    @property
    def options(self) -> OptionSettings:
        """What the agent has."""
        place = self.directory
        return OptionSettings("nginx", 600, (), place / "nginx.pid", place, place, None)

    def put(self, key: KeyPair) -> None:
        """Key and certificate for the next start."""
        (self.directory / "key.pem").write_bytes(pem(key))
        (self.directory / "chain.pem").write_bytes(certificate(key).public_bytes(Encoding.PEM))

    def get(self, seconds: float = PATIENCE) -> bytes:
        """The server's certificate, after a whole page over a new connection."""
        return page(self.port, seconds=seconds)

    def end(self) -> None:
        """The master, and one that is still finishing."""
        for name in ("nginx.pid", "nginx.pid.oldbin"):
            pid = workers.running(self.directory / name)
            if pid is not None:
                os.kill(pid, signal.SIGTERM)
        eventually(lambda: not (self.directory / "nginx.pid").exists())


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    made = Nginx(tmp_path)
    yield made
    made.end()


def test_changes_under_load_lose_no_connection(nginx: Nginx) -> None:
    """Twice another key while clients come without a pause: each gets a whole page, and the last certificate serves."""
    first = nginx.pid
    with clients_without_a_pause(nginx.get) as seen:
        eventually(lambda: len(seen) > 5)
        for key in (rsa_key(), ec_key()):
            nginx.put(key)
            assert webserver.apply(nginx.options) == f"nginx went on as process {nginx.pid}"
            before = len(seen)
            eventually(lambda before=before: len(seen) > before + 5)  # type: ignore[misc]
    assert len(set(seen)) == 3
    assert nginx.pid != first


def test_a_configuration_that_is_wrong_changes_nothing(nginx: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new master does not come up: that is told, and the old one serves on."""
    monkeypatch.setattr(webserver, "UPGRADE_SECONDS", 1.0)
    before, first = nginx.get(), nginx.pid
    (nginx.directory / "key.pem").write_text("no key")
    with pytest.raises(MachineError, match="did not take up the change, and goes on as before"):
        webserver.apply(nginx.options)
    assert nginx.get() == before
    eventually(lambda: nginx.pid == first)  # nginx puts its pid file back


def test_an_nginx_that_does_not_finish_is_ended_by_the_next_change(
    nginx: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that stays keeps the old master, and nginx takes no other change: it has its time, then it goes."""
    with socket.create_connection(("127.0.0.1", nginx.port), PATIENCE) as plain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain) as secure:
            secure.sendall(b"GET / HTTP/1.1\r\n")  # and the rest of it never comes
            first = nginx.pid
            assert webserver.apply(nginx.options) == f"nginx went on as process {nginx.pid}"
            assert workers.running(nginx.directory / "nginx.pid.oldbin") == first
            nginx.put(rsa_key())
            monkeypatch.setattr(webserver, "UPGRADE_SECONDS", 5.0)
            said = webserver.apply(nginx.options)
            assert said.endswith(f"; process {first} still had connections from the change before, and was ended")
    assert nginx.get()


@pytest.mark.skipif(os.getuid() != 0, reason="only root has workers of another user")
def test_workers_that_cannot_reach_the_token_are_told(tmp_path: Path) -> None:
    """A directory on the way that is closed to their user, and a socket that is; otherwise nothing is said."""
    place = Path(tempfile.mkdtemp(prefix="alcove-"))  # pytest's own directories are closed to others
    master = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], user=65534, group=65534, extra_groups=[])
    (tmp_path / "pid").write_text(str(master.pid))
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place / "p11.sock"))
            place.chmod(0o711)
            (place / "p11.sock").chmod(0o666)
            eventually(lambda: workers.of(master.pid))
            assert workers.shut_out(place / "p11.sock", tmp_path / "pid") is None
            place.chmod(0o700)
            said = workers.shut_out(place / "p11.sock", tmp_path / "pid")
            assert said == (
                f"the web server's workers (nobody) cannot reach {place}/p11.sock:"
                " set socket_group, and let them pass to it"
            )
            place.chmod(0o711)
            (place / "p11.sock").chmod(0o600)
            assert workers.shut_out(place / "p11.sock", tmp_path / "pid")
            assert workers.shut_out(place / "other.sock", tmp_path / "pid") is None
            assert workers.shut_out(place / "p11.sock", tmp_path / "none") is None
    finally:
        for pid in workers.of(master.pid):
            os.kill(pid, signal.SIGKILL)
        master.wait()
        shutil.rmtree(place)
