"""KVM is used when it is proven, and only then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alcove.errors import MachineError
from alcove.machine import accelerator
from alcove.machine.accelerator import choose_accelerator, has_virtualisation, tsc_khz
from alcove.machine.argv import Qemu

PLAIN = "processor\t: 0\nflags\t\t: fpu tsc sse2\nbogomips\t: 5192.27\n"
CAPABLE = PLAIN.replace("sse2", "svm sse2")

Host = Callable[[str, str], Qemu]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with a /dev/kvm, given processor facts, and a QEMU that is a shell script."""

    def make(cpuinfo: str, script: str) -> Qemu:
        for name, text in {"kvm": "", "cpuinfo": cpuinfo, "boot_id": "b-1\n"}.items():
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(accelerator, "_KVM", tmp_path / "kvm")
        monkeypatch.setattr(accelerator, "_CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(accelerator, "_BOOT_ID", tmp_path / "boot_id")
        monkeypatch.setattr(accelerator, "PROBE_SECONDS", 60.0)
        binary = tmp_path / "qemu"
        binary.write_text(f"#!/bin/sh\necho run >>{tmp_path}/runs\n{script}\n")
        binary.chmod(0o755)
        return Qemu(binary, None, None, None, (), (11, 1, 3))

    return make


def test_a_device_file_without_processor_support_is_not_believed(host: Host, tmp_path: Path) -> None:
    """/dev/kvm exists on hosts where it cannot work; QEMU is not even started."""
    chosen, why = choose_accelerator(host(PLAIN, "exit 0"), kernel=tmp_path / "k")
    assert chosen == "tcg"
    assert "neither vmx nor svm" in why
    assert not (tmp_path / "runs").exists()


def test_a_kernel_that_speaks_proves_kvm(host: Host, tmp_path: Path) -> None:
    """One line of a booted kernel is the proof."""
    qemu = host(CAPABLE, "echo '[0.0] Linux version 6.12'")
    assert choose_accelerator(qemu, kernel=tmp_path / "k") == ("kvm", "proven by a probe boot")


def test_a_silent_kernel_proves_nothing(host: Host, tmp_path: Path) -> None:
    """QEMU's own complaint on standard error is no kernel."""
    chosen, why = choose_accelerator(host(CAPABLE, "echo 'Suberror: 1' >&2; exit 1"), kernel=tmp_path / "k")
    assert (chosen, why) == ("tcg", "a probe boot under KVM failed")


def test_a_hanging_probe_ends_at_its_time_limit(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that hangs is a failed probe, not a hanging command."""
    qemu = host(CAPABLE, "exec sleep 20")
    monkeypatch.setattr(accelerator, "PROBE_SECONDS", 0.2)
    assert choose_accelerator(qemu, kernel=tmp_path / "k")[0] == "tcg"


def test_the_verdict_is_kept_until_the_host_restarts(host: Host, tmp_path: Path) -> None:
    """A second question starts nothing; another boot id, or a broken file, asks anew."""
    qemu, cache = host(CAPABLE, "echo Linux version 6"), tmp_path / "accelerator.json"
    for _ in range(2):
        assert choose_accelerator(qemu, kernel=tmp_path / "k", cache=cache)[0] == "kvm"
    assert (tmp_path / "runs").read_text() == "run\n"
    assert json.loads(cache.read_text())["kvm"] is True
    (tmp_path / "boot_id").write_text("b-2\n")
    choose_accelerator(qemu, kernel=tmp_path / "k", cache=cache)
    cache.write_text("[]")
    choose_accelerator(qemu, kernel=tmp_path / "k", cache=cache)
    assert (tmp_path / "runs").read_text() == "run\n" * 3


def test_without_a_kernel_kvm_stays_unproven(host: Host) -> None:
    """Flags alone are no proof."""
    assert choose_accelerator(host(CAPABLE, "exit 0"))[0] == "tcg"


def test_a_wish_is_followed(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TCG always; KVM where it opens, and an error where it does not."""
    qemu = host(PLAIN, "exit 0")
    assert choose_accelerator(qemu, "tcg")[0] == "tcg"
    assert choose_accelerator(qemu, "kvm")[0] == "kvm"
    monkeypatch.setattr(accelerator, "_KVM", tmp_path / "absent")
    assert choose_accelerator(qemu)[0] == "tcg"
    with pytest.raises(MachineError, match="does not exist"):
        choose_accelerator(qemu, "kvm")


def test_the_flags_are_words() -> None:
    """A name that merely contains svm, or stands in another line, is none."""
    assert has_virtualisation("flags : fpu vmx\n")
    assert not has_virtualisation("flags : svm_lock fpu\nvmx flags : svm\n")
    assert not has_virtualisation("")


def test_the_counters_rate_comes_from_bogomips() -> None:
    """Twice the MHz, as Linux computes it from the counter's own rate."""
    assert tsc_khz(PLAIN) == 2_596_135
    assert tsc_khz("model name: none") == 1_000_000
