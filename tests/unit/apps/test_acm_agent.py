"""The agent with everything real but the machine: KMS, enclave program, local CA, p11-kit's protocol, files."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from tests.unit.apps.acm_device import certificate, ec_key
from tests.unit.apps.acm_enclave import Machineless
from tests.unit.apps.acm_kms import Parts, chain_pem, parts, pem
from tests.unit.apps.test_acm_server import Wire

from alcove.apps.acm import kms_proxy, relay
from alcove.apps.acm.agent import Agent, Place
from alcove.apps.acm.cryptoki import Cka, Ckm, Cko, Refused
from alcove.apps.acm.provisioning import ImagePolicy
from alcove.apps.acm.settings import KmsSettings, parse
from alcove.apps.acm.values import Attribute, Mechanism
from alcove.errors import InputError, UsageError
from alcove.proxy.allowlist import Route
from alcove.proxy.vsock_proxy import ProxyConfig, VsockProxy

PATIENCE = 60.0


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with parts(tmp_path_factory.mktemp("kms")) as found:
        yield found


def eventually(condition: Callable[[], Any], what: str = "it did not happen") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Running:
    """An agent in a thread, and what it left on disk."""

    def __init__(self, directory: Path, launcher: Machineless, log: list[str]) -> None:
        self.directory, self.launcher, self.log = directory, launcher, log

    def status(self) -> dict[str, Any]:
        """What it wrote down."""
        try:
            found: dict[str, Any] = json.loads((self.directory / "run" / "status.json").read_text())
        except OSError:
            return {"tokens": [], "enclave": None}
        return found

    def token(self, label: str = "web") -> dict[str, Any]:
        """One token of the status."""
        return next((each for each in self.status()["tokens"] if each["label"] == label), {"served": False})

    def serves(self, label: str = "web") -> bool:
        """Whether the status says so."""
        return bool(self.token(label)["served"])

    def certificate(self, label: str = "web") -> x509.Certificate:
        """What a web server would send."""
        file = self.directory / "run" / f"nginx-cert-{label.encode().hex()}.pem"
        return x509.load_pem_x509_certificate(file.read_bytes())

    def pin(self, label: str = "web") -> bytes:
        """From the web server's configuration."""
        return (self.directory / f"{label}.conf").read_text().split("pin-value=")[1].split('"')[0].encode()

    def named(self, label: str = "web") -> bytes:
        """The id of the key, from the web server's configuration."""
        return bytes.fromhex((self.directory / f"{label}.conf").read_text().split(";id=%")[1][:2])

    def sign(self, label: str = "web", named: bytes | None = None) -> bool:
        """Whether a p11-kit client gets a signature through the agent's socket now, with a key of this id."""
        try:
            return self._sign(label, named or self.named(label))
        except (OSError, LookupError, ValueError, Refused):  # between two enclaves
            return False

    def _sign(self, label: str, named: bytes) -> bool:
        wire = Wire(self.directory / "run" / "p11.sock")
        try:
            wire.begin()
            names = {wire("C_GetTokenInfo", slot)[0].strip(): slot for slot in wire("C_GetSlotList", 1, 99)}
            session = wire("C_OpenSession", names[label.encode()], 4)
            wire("C_Login", session, 1, self.pin(label))
            template = Attribute(Cka.CLASS, int(Cko.PRIVATE_KEY)), Attribute(Cka.ID, named)
            wire("C_FindObjectsInit", session, template)
            (key,) = wire("C_FindObjects", session, 9)
            wire("C_SignInit", session, Mechanism(Ckm.ECDSA), key)
            return len(wire("C_Sign", session, bytes(32), 512)) == 64
        finally:
            wire.close()


def born(directory: Path, label: str = "web", **members: Any) -> dict[str, Any]:
    """A token whose key is born in the enclave."""
    source = {"directory": str(directory / "ca"), "domains": ["www.example"]} | members
    return {
        "label": label,
        "source": {"LocalCa": source},
        "target": {"Conf": {"path": str(directory / f"{label}.conf")}},
    }


def exported(kms: Parts, directory: Path, label: str = "known") -> dict[str, Any]:
    """A token with AWS's export, in a file."""
    chain = chain_pem(certificate(ec_key(), "known.example"))
    export = {"certificate": chain, "certificateChain": "", "encryptedPrivateKey": kms.encrypted(ec_key())}
    (directory / "export.json").write_text(json.dumps(export))
    source = {"File": {"path": str(directory / "export.json")}}
    return {"label": label, "source": source, "target": {"Conf": {"path": str(directory / f"{label}.conf")}}}


@contextmanager
def agent(
    kms: Parts,
    directory: Path,
    *tokens: dict[str, Any],
    verify: Callable[..., None] = lambda *_: None,
    policy: ImagePolicy | None = None,
    kms_settings: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[Running]:
    """An agent that runs as long as the context lasts."""
    launcher = Machineless(directory, kms, policy or ImagePolicy((kms.key_id,)))
    document = {
        "enclave": {"cpu_count": 2, "memory_mib": 512},
        "kms": {"endpoint": f"localhost:{kms.kms.port}", "key_id": kms.key_id} | (kms_settings or {}),
        "options": {"sync_interval_secs": 1, "pid_file": str(directory / "nginx.pid")} | options,
        "tokens": list(tokens),
    }
    settings = parse(yaml.safe_dump(document), run_directory=directory / "run", state_directory=directory / "keys")
    environment = kms.kms.environment
    credentials = environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], None
    place = Place(directory, verify, lambda: credentials, launcher)
    log: list[str] = []
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            loop.run_until_complete(Agent(settings, place, log.append).serve(stop))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test's thread
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield Running(directory, launcher, log)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        launcher.kill()
    assert failed == []


def test_two_tokens_are_served(kms: Parts, tmp_path: Path) -> None:
    """A born key and an exported one: stanza, certificate, status, and a signature over p11-kit's protocol."""
    documents: list[bytes] = []
    tokens = born(tmp_path), exported(kms, tmp_path)
    with agent(kms, tmp_path, *tokens, verify=lambda _, document, __: documents.append(document)) as running:
        eventually(lambda: running.serves() and running.serves("known"), str(running.log))
        eventually(lambda: "is not running" in " ".join(running.log))
        assert running.sign()
        assert running.sign("known")
        assert len(documents) == 1
        assert stat.S_IMODE((tmp_path / "web.conf").stat().st_mode) == 0o440
        assert stat.S_IMODE((tmp_path / "run" / "p11.sock").stat().st_mode) == 0o600
        token = running.token()
        assert datetime.fromisoformat(token["expires"]) > datetime.now(UTC)
        assert "pin-value" not in json.dumps(running.status())
        assert running.pin().decode() not in json.dumps(running.log)
    assert running.status()["enclave"] is None
    assert not (tmp_path / "run" / "p11.sock").exists()


def test_a_dead_enclave_is_replaced_and_its_keys_restored(kms: Parts, tmp_path: Path) -> None:
    """The same certificate and PIN serve on, with another enclave; what an old client asks is refused."""
    with agent(kms, tmp_path, born(tmp_path)) as running:
        eventually(running.serves, str(running.log))
        eventually(running.sign)
        before, enclave = running.certificate(), running.status()["enclave"]["id"]
        with closing(Wire(tmp_path / "run" / "p11.sock")) as held:
            held.begin()
            running.launcher.kill()
            with pytest.raises(Refused):
                held("C_GetSlotList", 1, 99)
        eventually(lambda: running.launcher.starts == 2 and running.serves(), str(running.log))
        assert running.status()["enclave"]["id"] != enclave
        eventually(running.sign)
        assert running.certificate() == before
        assert running.launcher.starts == 2


@pytest.mark.slow
def test_an_enclave_that_does_not_answer_is_replaced(
    kms: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives and does nothing: the client that waits for it is refused, and the agent starts another."""
    monkeypatch.setattr(relay, "ANSWER_SECONDS", 1.0)
    with agent(kms, tmp_path, born(tmp_path)) as running:
        eventually(running.sign)
        with closing(Wire(tmp_path / "run" / "p11.sock")) as wire:
            wire.begin()
            running.launcher.freeze()
            with pytest.raises(Refused):
                wire("C_GetSlotList", 1, 99)
        eventually(lambda: running.launcher.starts == 2 and running.sign(), "no other enclave serves")
    assert "the enclave does not answer on port 10000: timed out: it is started again" in running.log


def test_a_certificate_whose_time_goes_is_renewed(kms: Parts, tmp_path: Path) -> None:
    """With a lifetime of seconds another key is born before the end, and signs; clients on the old one go on."""
    with agent(kms, tmp_path, born(tmp_path, lifetime_days=12 / 86400)) as running:
        eventually(running.serves, str(running.log))
        eventually(running.sign)
        first = running.certificate()
        before = running.named()
        eventually(lambda: running.certificate() != first, str(running.log))
        assert running.certificate().public_key() != first.public_key()
        eventually(lambda: running.named() != before)
        eventually(running.sign)
        assert running.sign(named=before)  # a worker that has not heard of the change finds its key under its name


def test_apache_is_told_gracefully(kms: Parts, tmp_path: Path) -> None:
    """One that was started with the enclave that runs gets SIGUSR1 at a renewal, when its file has the new lines."""
    told = tmp_path / "told"
    program = f"trap 'cp {tmp_path}/web.conf {told}' USR1; while :; do sleep 0.05; done"
    with (
        agent(kms, tmp_path, born(tmp_path), service="httpd", pid_file=str(tmp_path / "httpd.pid")) as running,
        subprocess.Popen(["sh", "-c", program]) as apache,
    ):
        try:
            eventually(lambda: "httpd is not running: start it, it will find its key" in running.log, str(running.log))
            (tmp_path / "httpd.pid").write_text(str(apache.pid))
            before = (tmp_path / "web.conf").read_text()
            (tmp_path / "keys" / f"{b'web'.hex()}.json").unlink()  # another is made at the next round
            eventually(told.exists, str(running.log))
            eventually(lambda: told.read_text() == (tmp_path / "web.conf").read_text() != before)
            eventually(lambda: f"httpd went on gracefully as process {apache.pid}" in running.log, str(running.log))
        finally:
            apache.kill()


def test_a_changed_source_is_taken_up(kms: Parts, tmp_path: Path) -> None:
    """A new export in the file is another certificate within a round."""
    token = exported(kms, tmp_path)
    with agent(kms, tmp_path, token) as running:
        eventually(lambda: running.serves("known"), str(running.log))
        export = json.loads((tmp_path / "export.json").read_text())
        fresh = certificate(ec_key(), "other.example")
        (tmp_path / "part").write_text(json.dumps(export | {"certificate": chain_pem(fresh)}))
        (tmp_path / "part").replace(tmp_path / "export.json")
        eventually(lambda: running.certificate("known") == fresh, str(running.log))


def test_a_token_in_trouble_leaves_the_others_alone(kms: Parts, tmp_path: Path) -> None:
    """A missing file, KMS's refusal, a document that is not believed: a sentence each, once; the good one serves."""
    missing = exported(kms, tmp_path, "missing") | {"source": {"File": {"path": str(tmp_path / "nothing")}}}
    refused = exported(kms, tmp_path, "refused")
    export = json.loads((tmp_path / "export.json").read_text())
    foreign = kms.kms.encrypt(kms.kms.create_key({"PCR0": b"\5" * 48}), pem(ec_key()))
    (tmp_path / "refused.json").write_text(json.dumps(export | {"encryptedPrivateKey": foreign}))
    refused["source"] = {"File": {"path": str(tmp_path / "refused.json")}}
    disbelieved = born(tmp_path, "disbelieved")

    def verify(*_: object) -> None:
        raise InputError("not the image")

    with agent(kms, tmp_path, missing, refused, disbelieved, exported(kms, tmp_path), verify=verify) as running:
        eventually(lambda: running.serves("known"), str(running.log))
        eventually(lambda: running.sign("known"))
        eventually(lambda: len([line for line in running.log if line.startswith("token ")]) == 4, str(running.log))
    for label, sentence in (
        ("missing", "cannot be read: No such file or directory"),
        ("refused", "KmsDecryptFailed: "),
        ("disbelieved", "not the image"),
    ):
        (line,) = [line for line in running.log if line.startswith(f"token {label}: ")]
        assert sentence in line


def test_a_kept_key_of_another_kms_is_replaced(kms: Parts, tmp_path: Path) -> None:
    """A sealed key that this KMS key does not open, from an earlier life: another is born in its place."""
    (tmp_path / "keys").mkdir()
    key = {"sealed_key": "{}", "id": 1, "label": "alcove-key", "cert_pem": chain_pem(certificate(ec_key()))}
    record = {"domains": ["www.example"], "key": key}
    (tmp_path / "keys" / f"{b'web'.hex()}.json").write_text(json.dumps(record))
    with agent(kms, tmp_path, born(tmp_path)) as running:
        eventually(running.serves, str(running.log))
        eventually(running.sign)
        assert running.certificate().public_key() != ec_key().public


def test_a_pkcs12_file_needs_an_image_for_trying_out(kms: Parts, tmp_path: Path) -> None:
    """The image decides whether keys come in clear."""
    from cryptography.hazmat.primitives.serialization import NoEncryption  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates  # noqa: PLC0415

    data = serialize_key_and_certificates(b"n", ec_key().private, certificate(ec_key()), None, NoEncryption())
    (tmp_path / "k.p12").write_bytes(data)
    token = {"label": "web", "source": {"Pkcs12": {"path": str(tmp_path / "k.p12")}}}
    token["target"] = {"Conf": {"path": str(tmp_path / "web.conf")}}
    for name, plain in (("strict", False), ("lax", True)):
        place = tmp_path / name
        place.mkdir()
        with agent(kms, place, token, policy=ImagePolicy(plain_keys=plain)) as running:
            if plain:
                eventually(running.serves, str(running.log))
            else:
                eventually(lambda running=running: "no keys in clear" in " ".join(running.log))  # type: ignore[misc]


def test_the_agent_is_the_way_to_kms(kms: Parts, tmp_path: Path) -> None:
    """Its port leads there and is the owner's; when vsock-proxy serves the port already, that is the way."""
    with agent(kms, tmp_path, exported(kms, tmp_path)) as running:
        eventually(lambda: running.serves("known"), str(running.log))
        assert f"enclaves reach KMS at localhost:{kms.kms.port} through port 8000" in running.log
        assert stat.S_IMODE((tmp_path / "vsock" / "8000.sock").stat().st_mode) == 0o600
    assert not (tmp_path / "vsock" / "8000.sock").exists()
    route = Route(8000, "localhost", kms.kms.port)
    (tmp_path / "allow.yaml").write_text(f"allowlist:\n- {{address: localhost, port: {kms.kms.port}}}\n")
    (tmp_path / "again" / "vsock").mkdir(parents=True)
    config = ProxyConfig(tmp_path / "again" / "vsock", tmp_path / "allow.yaml", route)
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    work = VsockProxy(config).serve(stop, lambda _: ready.set())
    thread = threading.Thread(target=lambda: loop.run_until_complete(work))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        with agent(kms, tmp_path / "again", exported(kms, tmp_path)) as running:
            eventually(lambda: running.serves("known"), str(running.log))
            assert "another program serves port 8000: it is taken as the way to KMS" in running.log
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def test_a_kms_that_is_not_there_is_told(kms: Parts, tmp_path: Path) -> None:
    """By the agent with the reason, once, and by the enclave."""
    taken = socket.create_server(("127.0.0.1", 0))
    settings = {"endpoint": f"localhost:{taken.getsockname()[1]}"}
    taken.close()
    with agent(kms, tmp_path, exported(kms, tmp_path), kms_settings=settings) as running:
        eventually(lambda: running.token("known").get("trouble"), str(running.log))
        assert running.token("known")["trouble"].startswith("KmsDecryptFailed: the connection to localhost failed")
        (line,) = [line for line in running.log if line.startswith("KMS cannot be reached")]
        assert line.endswith("127.0.0.1: Connection refused")


@pytest.mark.parametrize("endpoint", ["https://kms", "kms:0", "kms:99999", "a b", ""])
def test_an_endpoint_is_a_name_and_a_port(endpoint: str) -> None:
    """One sentence for anything else, before anything is started."""
    with pytest.raises(UsageError, match=r"kms\.endpoint is a name"):
        kms_proxy.destination(KmsSettings("us-east-1", endpoint, None, 8000))


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (None, ("kms.eu-west-1.amazonaws.com", 443)),
        ("kms.internal", ("kms.internal", 443)),
        ("[::1]:8443", ("::1", 8443)),
    ],
)
def test_an_endpoint_has_aws_s_defaults(endpoint: str | None, expected: tuple[str, int]) -> None:
    """The region's KMS, and HTTPS."""
    assert kms_proxy.destination(KmsSettings("eu-west-1", endpoint, None, 8000)) == expected


def test_nothing_listens_where_another_agent_does(kms: Parts, tmp_path: Path) -> None:
    """A second agent on the same socket does not start."""
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "run" / "p11.sock"))
        other.listen()
        with pytest.raises(AssertionError, match="another program listens there"), agent(kms, tmp_path, born(tmp_path)):
            pass


def test_one_agent_runs_an_enclave(kms: Parts, tmp_path: Path) -> None:
    """A second one with another socket would end the enclave of the first at each start: it does not start."""
    with agent(kms, tmp_path, born(tmp_path)) as running:
        eventually(running.serves, str(running.log))
        other = agent(kms, tmp_path, born(tmp_path), run_directory=str(tmp_path / "other"))
        with pytest.raises(AssertionError, match="another agent runs its enclave in"), other:
            pass
        assert running.launcher.starts == 1
        assert running.sign()
    assert not (tmp_path / "other" / "p11.sock").exists()


def test_files_that_cannot_be_written_are_written_once_they_can(kms: Parts, tmp_path: Path) -> None:
    """The token is in trouble until the target is there, and only then is the web server told."""
    token, target = exported(kms, tmp_path), tmp_path / "blocked" / "known.conf"
    token["target"]["Conf"]["path"] = str(target)
    target.parent.write_text("a file where a directory should be")
    with agent(kms, tmp_path, token) as running:
        sentence = f"{target} cannot be written: "
        eventually(lambda: (running.token("known").get("trouble") or "").startswith(sentence), str(running.log))
        time.sleep(2.5)  # two rounds
        assert running.token("known")["trouble"].startswith(sentence)
        assert "nginx is not running: start it, it will find its key" in running.log  # at the enclave's start
        told = len(running.log)
        target.parent.unlink()
        eventually(lambda: running.log[told:] != [] and running.token("known")["trouble"] is None, str(running.log))
        eventually(lambda: len(running.log) == told + 2, str(running.log))
        assert running.log[told:] == [
            "token known: is served",
            "nginx is not running: start it, it will find its key",
        ]
        assert "pin-value" in target.read_text()


@pytest.mark.parametrize("member", ["user", "group"])
def test_a_target_s_owner_that_is_none_leaves_no_file(kms: Parts, tmp_path: Path, member: str) -> None:
    """The stanza has the PIN: nothing of it stays behind under another name."""
    token = exported(kms, tmp_path)
    token["target"]["Conf"] |= {"path": str(tmp_path / "conf" / "known.conf"), member: "no-such-one"}
    with agent(kms, tmp_path, token) as running:
        eventually(lambda: running.token("known").get("trouble"), str(running.log))
        assert f"known.conf cannot be written: no such {member}: 'no-such-one'" in running.token("known")["trouble"]
        assert list((tmp_path / "conf").iterdir()) == []


def test_a_target_that_is_no_text_is_left_alone(kms: Parts, tmp_path: Path) -> None:
    """Apache's file is not UTF-8: that is told, nothing of it is lost, and the other token serves."""
    (tmp_path / "httpd.conf").write_bytes(b"# caf\xe9\n")
    apache = exported(kms, tmp_path, "apache")
    apache["target"]["Conf"]["path"] = str(tmp_path / "httpd.conf")
    with agent(kms, tmp_path, apache, exported(kms, tmp_path), service="httpd") as running:
        eventually(lambda: running.serves("known"), str(running.log))
        eventually(lambda: running.token("apache").get("trouble"), str(running.log))
        assert running.token("apache")["trouble"] == f"{tmp_path}/httpd.conf cannot be read: it is not UTF-8"
        assert (tmp_path / "httpd.conf").read_bytes() == b"# caf\xe9\n"
        eventually(lambda: "token known: is served" in running.log, str(running.log))


def test_a_reload_command_may_print_anything(kms: Parts, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 too; it failed, that is told, and the agent goes on."""
    command = ["sh", "-c", r"printf 'caf\351\n' >&2; exit 3"]
    with agent(kms, tmp_path, exported(kms, tmp_path), reload_command=command) as running:
        eventually(lambda: any("ended with 3: caf\ufffd" in line for line in running.log), str(running.log))
        assert running.sign("known")
