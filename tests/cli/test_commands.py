"""The programs as a person runs them: status, standard output, standard error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.small_image import write_small_image

from alcove.cli.codes import ERROR_CODES

BIN = Path(sys.executable).parent


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of ours; whatever happens, it must not show a traceback."""
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def key_and_certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A P-384 key and a self-signed certificate."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-days", "2",
         "-subj", "/CN=signer", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


@pytest.fixture
def eif(tmp_path: Path) -> Path:
    return write_small_image(tmp_path / "app.eif")


def test_a_signed_image_describes_itself(eif: Path, key_and_certificate: tuple[Path, Path]) -> None:
    """sign-eif, describe-eif and pcr agree about PCR8, and the signature checks."""
    key, certificate = key_and_certificate
    signed = run(
        "nitro-cli",
        "sign-eif",
        "--eif-path",
        str(eif),
        "--signing-certificate",
        str(certificate),
        "--private-key",
        str(key),
    )
    assert signed.returncode == 0, signed.stderr
    described = json.loads(run("nitro-cli", "describe-eif", "--eif-path", str(eif)).stdout)
    pcr8 = json.loads(run("nitro-cli", "pcr", "--signing-certificate", str(certificate)).stdout)["PCR8"]
    assert (described["IsSigned"], described["SignatureCheck"], described["CheckCRC"]) == (True, True, True)
    assert described["Measurements"] == json.loads(signed.stdout)["Measurements"]
    assert described["Measurements"]["PCR8"] == pcr8


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("sign-eif",), 1),
        (("sign-eif", "--eif-path", "x.eif"), 60),
        (("describe-eif", "--eif-path", "/nowhere.eif"), 19),
        (("pcr", "--input", "/nowhere"), 19),
        (("run-enclave", "--config", "/nowhere"), 19),
        (("run-enclave", "--cpu-count", "1"), 2),
        (("run-enclave", "--cpu-count", "1", "--cpu-ids", "1", "--memory", "64", "--eif-path", "x"), 2),
        (("run-enclave", "--cpu-count", "1", "--memory", "-10", "--eif-path", "x"), 2),
        (("run-enclave", "--cpu-ids", "-1", "--memory", "64", "--eif-path", "x"), 2),
        (("console", "--enclave-name", "x", "--disconnect-timeout", "-1"), 2),
        (("console", "--enclave-name", "x", "--disconnect-timeout", "soon"), 3),
        (("terminate-enclave", "--all", "--enclave-name", "x"), 2),
        (("build-enclave", "--docker-uri", "x"), 2),
        (("frobnicate",), 2),
    ],
)
def test_bad_arguments_have_their_status(arguments: tuple[str, ...], status: int) -> None:
    """cli.md §4: usage errors are 2, errors with a code have its number, and nothing goes to standard output."""
    done = run("nitro-cli", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr


def test_explain_knows_every_code() -> None:
    """cli.md §5.2: E00 to E60 without a gap; an unknown code is said to be unknown, with status 0."""
    assert list(ERROR_CODES) == [f"E{number:02}" for number in range(61)]
    assert "InsufficientMemoryRequested" in run("nitro-cli", "explain", "--error-code", "E26").stderr
    unknown = run("nitro-cli", "explain", "--error-code", "E99")
    assert (unknown.returncode, unknown.stderr) == (0, "No such error code E99\n")


def test_versions_and_help_are_there() -> None:
    """cli.md §1: the version line of AWS's program, and help with status 0."""
    assert run("nitro-cli", "--version").stdout == "Nitro CLI 1.5.0\n"
    for program in ("alcove", "nitro-cli", "vsock-proxy"):
        assert run(program, "--help").returncode == 0


def test_backtrace_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """cli.md §5.1: with BACKTRACE=1 the action, what failed from the outside in, and the version; never without."""
    arguments = ("nitro-cli", "run-enclave", "--config", "/nowhere")
    plain = run(*arguments)
    assert plain.stderr.count("\n") == 1
    monkeypatch.setenv("BACKTRACE", "1")
    traced = run(*arguments)
    assert (traced.returncode, traced.stdout) == (plain.returncode, "")
    assert traced.stderr.startswith(plain.stderr + "\nBacktrace:\n  Action: Run Enclave\n  Subactions:\n")
    assert "    Failed to read text\n  Root error file: " in traced.stderr
    assert traced.stderr.splitlines()[-1].startswith("  Version: ")


@pytest.mark.parametrize("command", ["run-enclave", "describe-enclaves", "terminate-enclave", "console", "explain"])
def test_help_has_an_example(command: str) -> None:
    """Each command of the run time shows how it is called."""
    said = run("nitro-cli", command, "--help").stdout
    assert f"example:\n  nitro-cli {command} --" in said
