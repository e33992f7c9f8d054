"""What the parent's agent writes, signs and keeps: stanzas, the local CA, sources, sealed keys."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from tests.cli.small_image import write_small_image
from tests.ports import free_port
from tests.unit.apps.acm_device import certificate, ec_key, rsa_key

from alcove.apps.acm import parent, sources, stanza, webserver, workers
from alcove.apps.acm.certificates import check_chain, dns_names, read_chain
from alcove.apps.acm.files import write_atomically
from alcove.apps.acm.keypair import KeyPair
from alcove.apps.acm.local_ca import LocalCa
from alcove.apps.acm.provisioning import signing_request
from alcove.apps.acm.settings import EnclaveSettings, OptionSettings, TokenSettings
from alcove.apps.acm.sources import Birth, BornKeys
from alcove.errors import AlcoveError, InputError, MachineError

NOW = datetime.now(UTC)
URI = "pkcs11:model=p11ne-token;manufacturer=Amazon;serial=EVT05;token=web;id=%01;object=acm-key;type=private"


def token(source: str = "LocalCa", **members: Any) -> TokenSettings:
    return TokenSettings("web", None, source, members, None, 43200, "tls", None, ("a.example",))


def request_pem(key: KeyPair, *names: str) -> str:
    return signing_request(key.private, names or ("a.example",)).public_bytes(Encoding.PEM).decode()


def test_nginx_is_told_key_and_certificate() -> None:
    """acm.md §8.2, without the serial, which a restart may change; both forms."""
    uri = stanza.key_uri(URI, "s3cret")
    assert uri == (
        "pkcs11:model=p11ne-token;manufacturer=Amazon;token=web;id=%01;object=acm-key;type=private?pin-value=s3cret"
    )
    name = stanza.certificate_name("nginx", "web")
    assert name == "nginx-cert-776562.pem"
    engine = stanza.nginx(uri, Path("/run") / name, "engine")
    assert engine == (f'ssl_certificate_key "engine:pkcs11:{uri}";\nssl_certificate "/run/nginx-cert-776562.pem";\n')
    assert f'ssl_certificate_key "store:{uri}";' in stanza.nginx(uri, Path("/x"), "provider")


def test_apache_s_lines_are_replaced_in_place() -> None:
    """Only lines that start with the directives; the rest stays; missing ones are added; twice is once."""
    before = "# SSLCertificateKeyFile x\nSSLEngine on\nSSLCertificateKeyFile old\n  SSLCertificateFile indented\nEnd"
    after = stanza.apache(before, r"pkcs11:token=\1", Path("/c.pem"))
    assert after == (
        "# SSLCertificateKeyFile x\nSSLEngine on\n"
        'SSLCertificateKeyFile "pkcs11:token=\\1"\n'
        "  SSLCertificateFile indented\nEnd\n"
        'SSLCertificateFile "/c.pem"\n'
    )
    assert stanza.apache(after, r"pkcs11:token=\1", Path("/c.pem")) == after


def test_certificate_and_chain_are_joined_by_a_newline() -> None:
    """acm.md §8.2: broken upstream when the certificate ends without one."""
    assert stanza.joined("one", "two\n") == "one\ntwo\n"
    assert stanza.joined("one\n\n", "") == "one\n"


def test_the_local_ca_signs_what_was_configured(tmp_path: Path) -> None:
    """A chain that OpenSSL verifies for the name; the CA's key is the owner's alone; opened again it is the same."""
    authority = LocalCa.open(tmp_path / "ca", NOW)
    pem = authority.issue(request_pem(ec_key()), ["A.example"], NOW, timedelta(days=9))
    (tmp_path / "leaf.pem").write_text(pem)
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "a.example", "-CAfile",
         tmp_path / "ca" / "ca.pem", tmp_path / "leaf.pem"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert LocalCa.open(tmp_path / "ca", NOW).certificate == authority.certificate
    (leaf,) = read_chain(pem)
    assert dns_names(leaf) == {"a.example"}
    check_chain([leaf, authority.certificate], ec_key(), NOW, ["a.example"])


def test_the_local_ca_refuses_other_requests(tmp_path: Path) -> None:
    """Other names, more names, no request, a request that its key did not sign."""
    authority = LocalCa.open(tmp_path, NOW)
    der = bytearray(signing_request(ec_key().private, ["a.example"]).public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    for text, sentence in (
        (request_pem(ec_key(), "b.example"), "the request is for b.example, not for a.example"),
        (request_pem(ec_key(), "a.example", "b.example"), "the request is for a.example, b.example"),
        ("nothing", "this is no request"),
        (forged, "not signed by its own key"),
    ):
        with pytest.raises(InputError, match=sentence):
            authority.issue(text, ["a.example"], NOW, timedelta(days=1))


def test_a_broken_local_ca_is_told(tmp_path: Path) -> None:
    """Key and certificate that are no pair, and a file that is no key."""
    LocalCa.open(tmp_path / "one", NOW)
    LocalCa.open(tmp_path / "two", NOW)
    (tmp_path / "one" / "ca.pem").write_bytes((tmp_path / "two" / "ca.pem").read_bytes())
    with pytest.raises(MachineError, match="no pair"):
        LocalCa.open(tmp_path / "one", NOW)
    (tmp_path / "two" / "ca.key").write_text("nothing")
    with pytest.raises(MachineError, match="cannot be used"):
        LocalCa.open(tmp_path / "two", NOW)


def test_aws_s_export_is_read_from_a_file(tmp_path: Path) -> None:
    """The key's members as AWS's agent sends them, the chain joined; bound when the source says so."""
    chain = certificate(ec_key()).public_bytes(Encoding.PEM).decode().rstrip()
    export = {"certificate": chain, "certificateChain": chain, "encryptedPrivateKey": "QUFB", "encryptionMethod": "x"}
    (tmp_path / "e.json").write_text(json.dumps(export))
    found = sources.fetch(token("File", path=str(tmp_path / "e.json"), bound=True))
    expected = {"encrypted_pem_b64": "QUFB", "id": 1, "label": "acm-key", "cert_pem": f"{chain}\n{chain}\n"}
    assert found.keys == (expected | {"bound": True},)
    assert len(read_chain(found.certificate)) == 2
    assert found.expires == x509.load_pem_x509_certificate(chain.encode()).not_valid_after_utc


def test_a_file_db_is_read_anew_each_time(tmp_path: Path) -> None:
    """AWS's array; unlike AWS's agent, ours sees that it changed."""
    path = tmp_path / "db.json"
    keys = [{"encrypted_pem_b64": "QUFB", "id": number, "label": f"k{number}"} for number in (1, 2)]
    path.write_text(json.dumps(keys))
    first = sources.fetch(token("FileDb", path=str(path)))
    assert [key["id"] for key in first.keys] == [1, 2]
    path.write_text(json.dumps(keys[:1]))
    assert sources.fetch(token("FileDb", path=str(path))) != first


def test_a_pkcs12_file_is_read_for_trying_out(tmp_path: Path) -> None:
    """Key and chain in clear; a wrong password is one sentence."""
    chain = certificate(rsa_key())
    data = serialize_key_and_certificates(
        b"n", rsa_key().private, chain, [certificate(ec_key())], BestAvailableEncryption(b"pw")
    )
    (tmp_path / "k.p12").write_bytes(data)
    (tmp_path / "pw").write_text("pw\n")
    source = {"path": str(tmp_path / "k.p12"), "password_file": str(tmp_path / "pw")}
    found = sources.fetch(token("Pkcs12", **source))
    assert KeyPair.from_pem(found.keys[0]["pem"].encode()).public == rsa_key().public
    assert len(read_chain(found.certificate)) == 2
    assert "PRIVATE" not in repr(found)
    (tmp_path / "pw").write_text("other")
    with pytest.raises(InputError, match="no PKCS#12 file, or the password is another"):
        sources.fetch(token("Pkcs12", **source))


def test_a_pkcs12_file_of_an_unknown_kind_of_key_is_told(tmp_path: Path) -> None:
    """A curve that the library has not is no fault of ours."""
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:sect163k1 -nodes -days 3 -subj /CN=a -keyout k -out c"
    for command in (new, "pkcs12 -export -passout pass: -inkey k -in c -out k.p12"):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    with pytest.raises(InputError, match=r"k\.p12 has a key of a kind that is not known: Curve"):
        sources.fetch(token("Pkcs12", path=str(tmp_path / "k.p12")))


@pytest.mark.parametrize(
    ("source", "members", "sentence"),
    [
        ("File", {}, "has a path or a url"),
        ("File", {"path": "/nonexistent"}, "cannot be read: No such file"),
        ("File", {"url": "http://localhost/x"}, "is not an https URL"),
        ("File", {"url": "https://localhost:1/x"}, "cannot be had"),
        ("S3", {"uri": "bucket"}, "s3://BUCKET/KEY"),
        ("Acm", {"certificate_arn": "arn"}, "works on AWS alone"),
        ("FileDb", {"path": "/etc/hostname"}, "is no array of keys"),
    ],
)
def test_a_source_that_is_wrong_gets_one_sentence(source: str, members: dict[str, str], sentence: str) -> None:
    """For the agent's log; the other tokens go on."""
    with pytest.raises(AlcoveError) as caught:
        sources.fetch(token(source, **members))
    assert sentence in caught.value.message


class Enclave:
    """Makes keys as the enclave does, and counts them."""

    def __init__(self) -> None:
        self.births = 0

    def create(self, settings: TokenSettings) -> Birth:
        """A request by another key each time."""
        self.births += 1
        key = ec_key() if self.births % 2 else rsa_key()
        return Birth(f"sealed {self.births}", request_pem(key, *(settings.domains or ())), b"document")


def test_a_born_key_is_kept_and_made_anew_in_time(tmp_path: Path) -> None:
    """Kept while two thirds of its certificate's time are ahead; then another; the kept one while none can be had."""
    enclave, refuse = Enclave(), list[str]()

    def verify(document: bytes, _: str) -> None:
        assert document == b"document"
        if refuse:
            raise InputError(refuse[0])

    born = BornKeys(tmp_path / "keys", enclave.create, verify)
    web = token(directory=str(tmp_path / "ca"), lifetime_days=9)
    first = born.material(web, NOW)
    assert born.material(web, NOW + timedelta(days=5)) == first
    assert enclave.births == 1
    assert stat.S_IMODE((tmp_path / "keys" / "776562.json").stat().st_mode) == 0o600
    refuse.append("not of this image")
    assert born.material(web, NOW + timedelta(days=7)) == first  # the old one serves on
    with pytest.raises(InputError, match="not of this image"):
        born.material(web, NOW + timedelta(days=10))  # and no longer than it is valid
    refuse.clear()
    second = born.material(web, NOW + timedelta(days=7))
    assert second.keys[0]["sealed_key"] != first.keys[0]["sealed_key"]
    assert second.expires is not None
    assert second.expires > NOW + timedelta(days=15)
    other = replace(web, domains=("b.example",))
    assert dns_names(read_chain(born.material(other, NOW).certificate)[0]) == {"b.example"}
    assert enclave.births == 5


def test_an_acme_server_that_does_not_issue_is_not_asked_at_once_again(tmp_path: Path) -> None:
    """After 30 s, a minute, and so on, an hour at most; meanwhile it is told what it said, and nothing is born."""
    enclave = Enclave()
    born = BornKeys(tmp_path / "keys", enclave.create, lambda *_: None)
    members = {"account_key": str(tmp_path / "account.pem"), "http_port": free_port()}
    web = token("Acme", directory_url=f"https://localhost:{free_port()}/dir", **members)
    births = []
    for seconds in (0, 10, 29, 31, 60, 92, 4000, 7500, 7700):
        with pytest.raises(MachineError, match="the ACME server did not issue: "):
            born.material(web, NOW + timedelta(seconds=seconds))
        births.append(enclave.births)
    assert births == [1, 1, 1, 2, 2, 3, 4, 5, 5]


def test_files_are_there_whole_with_their_mode(tmp_path: Path) -> None:
    """Written aside and renamed, over an earlier one too."""
    path = tmp_path / "deep" / "file"
    for text in ("one", "two"):
        write_atomically(path, text, 0o440, (None, None))
        assert path.read_text() == text
        assert stat.S_IMODE(path.stat().st_mode) == 0o440
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """Neither a part of it nor a change to what was there; one sentence says why."""
    (tmp_path / "file").write_text("before")
    with pytest.raises(MachineError, match=r"/file cannot be written: no such group: 'no-such-one'$"):
        write_atomically(tmp_path / "file", "after", 0o440, (None, "no-such-one"))
    assert (tmp_path / "file").read_text() == "before"
    (tmp_path / "directory" / "full").mkdir(parents=True)
    with pytest.raises(MachineError, match=r"/directory cannot be written: "):
        write_atomically(tmp_path / "directory", "after", 0o440)
    with pytest.raises(MachineError, match=r"/file/x cannot be written: "):
        write_atomically(tmp_path / "file" / "x", "after", 0o440)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "directory"}


def test_a_local_ca_that_was_begun_is_made(tmp_path: Path) -> None:
    """A certificate without its key, as after a crash, is made anew; with its key it is the same from then on."""
    LocalCa.open(tmp_path / "other", NOW)
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "ca.pem").write_bytes((tmp_path / "other" / "ca.pem").read_bytes())
    made = LocalCa.open(tmp_path / "ca", NOW)
    assert LocalCa.open(tmp_path / "ca", NOW).certificate == made.certificate
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"cannot be (used|written): "):
        LocalCa.open(tmp_path / "file" / "ca", NOW)


def test_nothing_is_born_that_could_not_be_kept(tmp_path: Path) -> None:
    """Before the enclave makes a key, and before anybody signs for it."""
    (tmp_path / "keys").write_text("")

    def create(_: TokenSettings) -> Birth:
        raise AssertionError

    born = BornKeys(tmp_path / "keys", create, lambda *_: None)
    with pytest.raises(MachineError, match="/keys cannot be made: File exists"):
        born.material(token(directory=str(tmp_path / "ca"), domains=["a.example"]), NOW)


def test_nitro_cli_s_own_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line that is no hint, and the hint; it is found beside this program when PATH does not name it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("ALCOVE_RUN", str(tmp_path / "run"))
    image = write_small_image(tmp_path / "app.eif")
    settings = EnclaveSettings(4096, 64, image, 1000, 9999, 10000)
    with pytest.raises(MachineError, match=r"^nitro-cli run-enclave: \[ E22 \] 4096 CPUs were asked for") as caught:
        parent.NitroCli().start(settings, tmp_path / "run")
    assert caught.value.hint is not None
    assert "--cpu-count" in caught.value.hint


@pytest.mark.parametrize("text", ["0", "-1", "99999999999999999999", "", "nginx"])
def test_a_pid_file_that_names_no_process_names_none(tmp_path: Path, text: str) -> None:
    """0 and -1 are groups of processes, and a signal to them is one to ourselves."""
    (tmp_path / "nginx.pid").write_text(text)
    assert workers.running(tmp_path / "nginx.pid") is None
    assert "is not running" in webserver.apply(options(tmp_path))


def options(tmp_path: Path, *command: str) -> OptionSettings:
    return OptionSettings("nginx", 600, command, tmp_path / "nginx.pid", tmp_path, tmp_path, None)


def test_a_web_server_that_does_not_run_is_left_alone(tmp_path: Path) -> None:
    """No pid file, or one of a process that has ended: said, and no error."""
    assert "is not running" in webserver.apply(options(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "nginx.pid").write_text(str(ended.pid))
    assert "is not running" in webserver.apply(options(tmp_path))


def test_a_reload_command_is_run(tmp_path: Path) -> None:
    """And its failure is one sentence."""
    assert webserver.apply(options(tmp_path, "touch", str(tmp_path / "done"))).startswith("ran `touch")
    assert (tmp_path / "done").exists()
    with pytest.raises(MachineError, match="ended with 1"):
        webserver.apply(options(tmp_path, "false"))
    with pytest.raises(MachineError, match="cannot be run"):
        webserver.apply(options(tmp_path, "/nonexistent"))


def test_documents_are_kept_out_of_what_is_kept(tmp_path: Path) -> None:
    """What is on disk is the ciphertext, the certificate and the names, and nothing else."""
    BornKeys(tmp_path / "k", Enclave().create, lambda *_: None).material(token(directory=str(tmp_path / "ca")), NOW)
    record = json.loads((tmp_path / "k" / "776562.json").read_text())
    assert record.keys() == {"domains", "key"}
    assert record["key"].keys() == {"sealed_key", "id", "label", "cert_pem"}
    assert base64.b64encode(b"document").decode() not in json.dumps(record)


def test_a_command_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent goes on: its other tokens have to be renewed."""
    monkeypatch.setattr(parent, "COMMAND_SECONDS", 0.2)
    with pytest.raises(MachineError, match="`sleep 60` did not end in 0 s and was killed"):
        parent.run_quietly(["sleep", "60"])
