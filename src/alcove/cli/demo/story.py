"""The story, chapter by chapter; every result in the report is read from what a command answered."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import alcove
from alcove.cli import output
from alcove.cli.demo.stage import Stage, chapter, explain
from alcove.enclave import lifecycle, registry
from alcove.enclave.allocator import required_mib
from alcove.enclave.paths import Paths
from alcove.errors import MachineError, UsageError

_BUSYBOX: Final = (Path("/usr/bin/busybox"), Path("/bin/busybox"))
_HOST: Final = "localhost"  # the name in the KMS's certificate
_PROXY_PORT: Final = "8000"
_MIN_MEMORY: Final = 512


@dataclass(slots=True)
class Report:
    """What happened, with timings in seconds."""

    pcrs: dict[str, str] = field(default_factory=dict)
    reproducible: bool = False
    boot_seconds: float = 0.0
    secret_released: bool = False
    refused_tampered: bool = False
    refused_parent: bool = False
    refused_debug: bool = False
    document_verified: bool = False
    chapter_seconds: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether everything that the story promises came true."""
        return all((
            self.reproducible, self.secret_released, self.refused_tampered, self.refused_parent, self.refused_debug,
            self.document_verified,
        ))  # fmt: skip


def tell(report_file: Path | None, keep: Path | None) -> int:
    """Tell the whole story.

    Returns:
        0 when everything came true, 1 otherwise.
    """
    if report_file is not None and not report_file.absolute().parent.is_dir():
        raise UsageError(f"`{report_file}` cannot be written: its directory is not there")
    report = Report()
    began = time.monotonic()
    examples = _examples()
    with _workplace(keep) as directory, Stage(directory, {"AWS_REGION": "us-east-1"}) as stage:
        for name in ("hello", "attested-decrypt"):
            shutil.copytree(examples / name, directory / name, dirs_exist_ok=True)
        _Story(stage, report).tell()
    report.total_seconds = round(time.monotonic() - began, 1)
    output.text(f"\n{'Everything came true' if report.complete else 'NOT everything came true'}, "
                f"in {report.total_seconds} s.")  # fmt: skip
    if report_file is not None:
        report_file.write_text(json.dumps(asdict(report), indent=2) + "\n")
        output.text(f"report: {report_file}")
    return 0 if report.complete else 1


def _examples() -> Path:
    for candidate in (Path(alcove.__file__).parents[2] / "examples", Path("examples").absolute()):
        if (candidate / "attested-decrypt").is_dir():
            return candidate
    raise UsageError("the examples are not here", hint="run the demo in a checkout of Alcove")


@contextmanager
def _workplace(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="alcove-demo-") as name:
        yield Path(name)


class _Story:
    def __init__(self, stage: Stage, report: Report) -> None:
        self._stage = stage
        self._report = report
        self._paths = Paths.from_environment()
        self._secret = secrets.token_hex(16)
        self._running: set[str] = set()

    def tell(self) -> None:
        try:
            self._tell()
        finally:  # a story that breaks off leaves no enclave behind
            for enclave_id in self._running:
                lifecycle.terminate_enclave(self._paths, registry.find(self._paths, enclave_id=enclave_id))

    def _tell(self) -> None:
        for part in (self._hello, self._attest, self._refuse, self._verify):
            began = time.monotonic()
            part()
            self._report.chapter_seconds[part.__name__.strip("_")] = round(time.monotonic() - began, 1)

    def _hello(self) -> None:
        stage = self._stage
        chapter(1, "Build", "A container image becomes an enclave image (EIF). No daemon; buildah runs and ends.")
        busybox = next((path for path in _BUSYBOX if path.exists()), None)
        if busybox is None:
            raise MachineError("busybox is missing", hint="apt-get install busybox-static")
        stage.run("cp", str(busybox), "hello/busybox")
        pcrs = self._build("hello", "hello.eif")
        again = self._build("hello", "hello-again.eif")
        self._report.reproducible = pcrs == again
        explain(f"built twice, the measurements are {'the same' if pcrs == again else 'NOT the same'}")
        chapter(2, "Run", "A virtual machine of its own: its kernel, two vCPUs, no network, no disk, one vsock.")
        began = time.monotonic()
        started = self._start("hello.eif", debug=True)
        self._report.boot_seconds = round(time.monotonic() - began, 1)
        explain(f"the guest's heartbeat arrived after {self._report.boot_seconds} s")
        chapter(3, "See it", "What runs, and what it says on its console (only in debug mode).")
        stage.run("nitro-cli", "describe-enclaves")
        console = stage.run(
            "nitro-cli", "console", "--enclave-id", started["EnclaveID"], "--disconnect-timeout", "3", show=False
        )
        _show_console(console)
        if "Hello from the enclave side!" not in console:
            raise MachineError("the console does not say hello", hint="look at the lines above")
        chapter(4, "Stop it", "The machine, its memory and its sockets are gone at once.")
        self._end(started)

    def _attest(self) -> None:
        stage = self._stage
        chapter(
            5, "Attest", "A second image: Python and Alcove's SDK. Its KMS certificate is baked in, so TLS ends inside."
        )
        self._make_authority_for_tls()
        self._make_rootfs()
        self._report.pcrs = self._build("attested-decrypt", "attested.eif")
        port = self._start_kms()
        self._key = stage.run(
            "python", "attested-decrypt/parent.py", "create-key", "--pcr0", self._report.pcrs["PCR0"]
        ).strip()
        explain("the key's policy allows kms:Decrypt only to an enclave whose PCR0 is this image's")
        (stage.directory / "secret.txt").write_text(self._secret)
        self._ciphertext = stage.run("python", "attested-decrypt/parent.py", "encrypt", self._key, "secret.txt").strip()
        (stage.directory / "secret.b64").write_text(self._ciphertext)
        (stage.directory / "allow.yaml").write_text(f"allowlist:\n- {{address: {_HOST}, port: {port}}}\n")
        stage.start("vsock-proxy", _PROXY_PORT, _HOST, str(port), "--config", "allow.yaml", ready="enclaves reach")
        started = self._start("attested.eif")
        answer = self._ask(started, "decrypt", "--key", self._key, "--ciphertext", "secret.b64")
        expected = hashlib.sha256(self._secret.encode()).hexdigest()
        self._report.secret_released = answer.get("sha256") == expected
        explain(
            "the enclave has the secret: it sent the right SHA-256" if self._report.secret_released else "NO secret"
        )
        self._ask(started, "attest", "--nonce", "00112233445566778899", "--output", "document.cbor")
        self._end(started)

    def _refuse(self) -> None:
        chapter(6, "Refuse", "The same with one byte changed, without an enclave, and in debug mode.")
        app = self._stage.directory / "attested-decrypt" / "app.py"
        source = app.read_bytes()
        # the first letter of its docstring changes case: the program does the same, and is not the same
        first = source.index(b'"""') + 3
        app.write_bytes(source[:first] + source[first : first + 1].swapcase() + source[first + 1 :])
        explain("one byte of app.py is another: a letter in a comment changed its case")
        self._build("attested-decrypt", "tampered.eif")
        self._report.refused_tampered = self._is_refused("tampered.eif", debug=False)
        refusal = self._stage.run(
            "python", "attested-decrypt/parent.py", "decrypt", self._key, "secret.b64", "--expect-refusal"
        )
        self._report.refused_parent = "AccessDeniedException" in refusal and "RecipientAttestation" in refusal
        explain("the parent, with the administrator's own credentials, is refused: it has no attestation document")
        self._report.refused_debug = self._is_refused("attested.eif", debug=True)

    def _verify(self) -> None:
        chapter(7, "Verify", "Anybody with the root certificate can check the enclave's document.")
        policy = {name: value for name, value in self._report.pcrs.items() if name.startswith("PCR")}
        (self._stage.directory / "policy.json").write_text(json.dumps(policy))
        root = str(self._paths.authority / "root.pem")
        self._stage.run(
            "alcove", "attest", "verify", "document.cbor", "--root", root, "--policy", "policy.json",
            "--nonce", "00112233445566778899",
        )  # fmt: skip
        self._report.document_verified = True  # the command's status is 0, or the line before has raised

    def _build(self, directory: str, file: str) -> dict[str, str]:
        built = self._stage.json(
            "nitro-cli", "build-enclave", "--docker-dir", directory, "--docker-uri", f"{directory}:latest",
            "--output-file", file,
        )  # fmt: skip
        measurements: dict[str, str] = built["Measurements"]
        return measurements

    def _start(self, eif: str, *, debug: bool = False) -> dict[str, Any]:
        size = (self._stage.directory / eif).stat().st_size
        memory = str(max(_MIN_MEMORY, required_mib(size)))
        flags = ["--debug-mode"] if debug else []
        started: dict[str, Any] = self._stage.json(
            "nitro-cli", "run-enclave", "--eif-path", eif, "--cpu-count", "2", "--memory", memory, *flags
        )
        self._running.add(started["EnclaveID"])
        return started

    def _end(self, started: dict[str, Any]) -> None:
        self._stage.run("nitro-cli", "terminate-enclave", "--enclave-id", started["EnclaveID"])
        self._running.discard(started["EnclaveID"])

    def _ask(self, started: dict[str, Any], *request: str, status: int = 0) -> dict[str, Any]:
        answer: dict[str, Any] = self._stage.json(
            "python", "attested-decrypt/parent.py", "ask", started["EnclaveID"], *request, status=status
        )
        return answer

    def _is_refused(self, eif: str, *, debug: bool) -> bool:
        started = self._start(eif, debug=debug)
        answer = self._ask(started, "decrypt", "--key", self._key, "--ciphertext", "secret.b64", status=1)
        self._end(started)
        error = answer.get("error", {})
        refused = error.get("type") == "AccessDeniedException" and "RecipientAttestation" in error.get("message", "")
        explain("refused" if refused else "NOT refused")
        return refused

    def _make_authority_for_tls(self) -> None:
        self._stage.run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", "/CN=Alcove demo KMS", "-addext", f"subjectAltName=DNS:{_HOST},IP:127.0.0.1",
            "-keyout", "kms-key.pem", "-out", "attested-decrypt/ca.pem",
        )  # fmt: skip

    def _make_rootfs(self) -> None:
        self._stage.run("alcove", "rootfs", "attested-decrypt/rootfs.tar", "--with", "python")

    def _start_kms(self) -> int:
        stage = self._stage
        store = f"sqlite:///{stage.directory}/kms.sqlite"
        user = json.loads(
            stage.run("alcove", "kms", "user", "add", "admin", "--admin", "--json", "--store", store, show=False)
        )
        explain(f"a user {user['UserArn']}; the secret access key stays out of this text")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        stage.start(
            "alcove", "kms", "serve", "--listen", f"127.0.0.1:{port}", "--store", store,
            "--tls-cert", "attested-decrypt/ca.pem", "--tls-key", "kms-key.pem", ready="listening",
        )  # fmt: skip
        stage.export(
            AWS_ACCESS_KEY_ID=user["AccessKeyId"],
            AWS_SECRET_ACCESS_KEY=user["SecretAccessKey"],
            AWS_ENDPOINT_URL_KMS=f"https://{_HOST}:{port}",
            AWS_ACCOUNT_ID=user["UserArn"].split(":")[4],
            AWS_CA_BUNDLE=str(stage.directory / "attested-decrypt" / "ca.pem"),
        )
        return port


def _show_console(console: str) -> None:
    lines = console.splitlines()
    shown = [*lines[:12], f"   … {len(lines) - 24} lines …", *lines[-12:]] if len(lines) > 24 else lines
    output.text("\n".join(shown))
