"""``alcove eif`` and describe-eif as a person runs them: status, standard output, standard error."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.unit.image.archives import APPLICATION, BOOT, archive, write

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of ours; whatever happens, it must not show a traceback."""
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A signed image and the signer's certificate."""
    key, certificate, eif = tmp_path / "key.pem", tmp_path / "cert.pem", write(tmp_path / "a.eif")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-days", "2",
         "-subj", "/CN=signer", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    done = run("nitro-cli", "sign-eif", "--eif-path", eif, "--signing-certificate", certificate, "--private-key", key)
    assert done.returncode == 0, done.stderr
    return eif, certificate


def test_diff_says_why_and_exits_as_diff_does(tmp_path: Path) -> None:
    """0 and the registers for the same, 1 and the reasons for others, E19 for what is not there."""
    a, b = write(tmp_path / "a.eif"), write(tmp_path / "b.eif", archive(*BOOT), archive(*APPLICATION[:-1]))
    same = run("alcove", "eif", "diff", a, a)
    assert (same.returncode, same.stdout.splitlines()[0], same.stderr) == (0, "PCR0 the same", "")
    other = run("alcove", "eif", "diff", a, b)
    assert other.returncode == 1
    assert other.stdout.splitlines()[:2] == ["ramdisk 1 (moves PCR0 PCR2)", "  - env (file, 0644, 0:0, 4 bytes)"]
    assert "PCR1 the same" in other.stdout
    assert "PCR2 differs" in other.stdout
    shown = run("alcove", "eif", "diff", a, b, "--json")
    parsed = json.loads(shown.stdout)
    assert (shown.returncode, parsed["same"], parsed["registers"]["PCR1"]["same"]) == (1, False, True)
    assert parsed["differences"][0]["name"] == "env"
    missing = run("alcove", "eif", "diff", a, tmp_path / "none")
    assert (missing.returncode, missing.stdout) == (19, "")
    assert "none" in missing.stderr


def test_explain_lists_every_file(tmp_path: Path) -> None:
    """Lines for people, and one JSON array for programs."""
    eif = write(tmp_path / "a.eif")
    lines = run("alcove", "eif", "explain", eif).stdout.splitlines()
    assert any(line.endswith(" rootfs/bin/ls -> sh") for line in lines)
    assert lines[-1].startswith("PCR2 ")
    parsed = json.loads(run("alcove", "eif", "explain", eif, "--json").stdout)
    assert [entry["name"] for entry in parsed if entry["kind"] == "member"][:3] == ["dev", "init", "nsm.ko"]


def test_extract_writes_parts_and_root(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    """The files are named on standard output; a second time needs --force; neither flag is a usage error."""
    eif, certificate = signed
    out, tar = tmp_path / "out", tmp_path / "root.tar"
    done = run("alcove", "eif", "extract", eif, "--output", out, "--rootfs", tar)
    assert done.returncode == 0
    assert str(out / "signing-certificate.pem") in done.stdout.splitlines()
    assert (out / "signing-certificate.pem").read_bytes() == certificate.read_bytes()
    with tarfile.open(tar) as opened:
        assert "bin/sh" in opened.getnames()
    again = run("alcove", "eif", "extract", eif, "--output", out)
    assert (again.returncode, "hint:" in again.stderr) == (19, True)
    assert run("alcove", "eif", "extract", eif, "--output", out, "--force").returncode == 0
    assert run("alcove", "eif", "extract", eif).returncode == 2


def test_verify_says_each_step(tmp_path: Path, signed: tuple[Path, Path]) -> None:
    """0 and the steps, or 3 and the step that failed; other mistakes have other statuses."""
    eif, certificate = signed
    done = run("alcove", "eif", "verify", eif, "--certificate", certificate)
    assert (done.returncode, [line[:5] for line in done.stdout.splitlines()]) == (0, [f"ok  {i}" for i in range(1, 8)])
    measurements = json.loads(run("alcove", "eif", "verify", eif, "--json").stdout)["Measurements"]
    pins = [text for index in (0, 1, 2, 8) for text in (f"--pcr{index}", measurements[f"PCR{index}"])]
    assert run("alcove", "eif", "verify", eif, *pins).returncode == 0
    wrong = run("alcove", "eif", "verify", eif, "--pcr1", measurements["PCR0"], "--json")
    assert (wrong.returncode, json.loads(wrong.stdout)["step"]) == (3, 8)
    late = run("alcove", "eif", "verify", eif, "--at", "2090-01-01T00:00:00Z")
    assert (late.returncode, "step 7" in late.stderr) == (3, True)
    unsigned = write(tmp_path / "plain.eif")
    assert run("alcove", "eif", "verify", unsigned).returncode == 3
    assert run("alcove", "eif", "verify", unsigned, "--allow-unsigned").returncode == 0
    assert run("alcove", "eif", "verify", unsigned, "--pcr0", "00").returncode == 2
    assert run("alcove", "eif", "verify", unsigned, "--at", "soon").returncode == 2
    assert run("alcove", "eif", "verify", tmp_path / "none").returncode == 19
    assert run("alcove", "eif", "verify", eif, "--certificate", eif).returncode == 57


def test_verify_without_a_pin_says_that_anybody_can_sign(signed: tuple[Path, Path]) -> None:
    """The image is valid, and the warning says what that is worth."""
    done = run("alcove", "eif", "verify", signed[0])
    assert done.returncode == 0
    assert done.stderr.startswith("warning: anybody can sign an image")


def test_describe_warns_on_standard_error(signed: tuple[Path, Path]) -> None:
    """A line for each thing; the JSON is as for a sound image; --strict is E35 and no JSON."""
    eif, _ = signed
    sound = run("nitro-cli", "describe-eif", "--eif-path", eif)
    assert sound.stderr == ""
    with eif.open("ab") as file:
        file.write(b"tail")
    odd = run("nitro-cli", "describe-eif", "--eif-path", eif)
    assert (odd.returncode, odd.stdout) == (0, sound.stdout)
    assert odd.stderr.startswith("warning: sections: 4 bytes follow the last section")
    assert len(odd.stderr.splitlines()) == 1
    strict = run("nitro-cli", "describe-eif", "--eif-path", eif, "--strict")
    assert (strict.returncode, strict.stdout) == (35, "")
    assert strict.stderr.startswith("[ E35 ] ")


def test_a_flipped_bit_is_named(signed: tuple[Path, Path]) -> None:
    """describe-eif ends with 0, shows false twice, and says which and why."""
    eif, _ = signed
    data = bytearray(eif.read_bytes())
    data[560] ^= 1  # the first byte of the kernel
    eif.write_bytes(data)
    done = run("nitro-cli", "describe-eif", "--eif-path", eif)
    shown = json.loads(done.stdout)
    assert (done.returncode, shown["CheckCRC"], shown["SignatureCheck"]) == (0, False, False)
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == ["CheckCRC", "SignatureCheck"]


def test_half_a_character_in_metadata_is_told(tmp_path: Path) -> None:
    """JSON can hold it escaped and no output can show it: a warning, and the rest of the fields."""
    metadata = b'{"ImageName":"\\ud800","ImageVersion":"1","BuildMetadata":{},"DockerInfo":null,"CustomMetadata":null}'
    eif = write(tmp_path / "a.eif", metadata=metadata)
    done = run("nitro-cli", "describe-eif", "--eif-path", eif)
    assert (done.returncode, json.loads(done.stdout)["CheckCRC"]) == (0, True)
    assert "half a character" in done.stderr
    assert run("alcove", "eif", "diff", eif, write(tmp_path / "b.eif"), "--json").returncode == 1


def test_eif_does_not_belong_to_nitro_cli() -> None:
    """The commands are Alcove's own."""
    assert run("nitro-cli", "eif", "diff", "a", "b").returncode == 2
