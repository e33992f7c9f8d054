from __future__ import annotations

import json
from pathlib import Path

import pytest

from alcove.cli.main import nitro_parser
from alcove.cli.nitro import _run_request
from alcove.enclave.config import RunRequest, parse_cid, parse_config, parse_memory
from alcove.errors import UsageError

GOOD = {"eif_path": "app.eif", "memory_mib": 512, "cpu_count": 2}


@pytest.mark.parametrize(("text", "mib"), [("512", 512), ("512M", 512), ("2g", 2048), ("1T", 1024 * 1024), ("0", 0)])
def test_memory_takes_mib_or_a_unit(text: str, mib: int) -> None:
    """cli.md §1.1: N, NM, NG and NT in either case."""
    assert parse_memory(text) == mib


@pytest.mark.parametrize("text", ["1.5G", "256_mb", "G", "", "-10", "9" * 30 + "T", "²"])
def test_memory_of_another_form_is_e03(text: str) -> None:
    """cli.md §1.1: nothing else is accepted, and nothing overflows."""
    with pytest.raises(UsageError) as caught:
        parse_memory(text)
    assert caught.value.code == "E03"
    assert caught.value.exit_status == 3


@pytest.mark.parametrize("cid", ["1", "2", "3", "4294967295", "4294967296"])
def test_reserved_cids_are_e03(cid: str) -> None:
    """cli.md §1.1: well-known CIDs cannot be an enclave's."""
    with pytest.raises(UsageError, match="reserved") as caught:
        RunRequest("app.eif", 512, cpu_count=1, enclave_cid=parse_cid(cid))
    assert caught.value.code == "E03"


def test_cid_zero_means_choose() -> None:
    """cli.md §1.1: 0 asks for a generated CID."""
    assert parse_cid("0") is None


def test_config_file_gives_a_request() -> None:
    """cli.md §1.2: the keys of the file, with their defaults."""
    request = parse_config(json.dumps(GOOD | {"attach_console": True, "enclave_cid": None}))
    assert (request.cpu_count, request.memory_mib, request.debug_mode, request.enclave_cid) == (2, 512, True, None)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"cpu_count": None}, "E01"),
        ({"cpu_ids": [1]}, "E02"),
        ({"colour": "red"}, "E17"),
        ({"memory_mib": "512"}, "E03"),
        ({"memory_mib": True}, "E03"),
        ({"cpu_ids": ["x"], "cpu_count": None}, "E03"),
        ({"enclave_name": "a b"}, "E03"),
    ],
)
def test_config_file_errors_have_their_codes(change: dict[str, object], code: str) -> None:
    """cli.md §1.2 and §5.2: each mistake has its own code."""
    with pytest.raises(UsageError) as caught:
        parse_config(json.dumps(GOOD | change))
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_config_that_is_no_object_is_e17(text: str) -> None:
    """cli.md §1.2: bad JSON is E17, not a traceback."""
    with pytest.raises(UsageError) as caught:
        parse_config(text)
    assert caught.value.code == "E17"


def test_name_comes_from_the_image_without_every_eif() -> None:
    """cli.md §3.2: the last path component, every trailing .eif removed."""
    assert RunRequest("/x/app.eif.eif", 64, cpu_count=1).wanted_name == "app"
    assert RunRequest("/x/app.eif", 64, cpu_count=1, enclave_name="b.eif").wanted_name == "b.eif"


@pytest.mark.parametrize("attach", [True, False])
def test_attach_console_beside_a_config_file_is_heeded(tmp_path: Path, *, attach: bool) -> None:
    """AWS's takes the flag there and ignores it; ours attaches, and so is in debug mode."""
    path = tmp_path / "enclave.json"
    path.write_text(json.dumps(GOOD))
    flags = ["run-enclave", "--config", str(path), *(["--attach-console"] if attach else [])]
    request = _run_request(nitro_parser().parse_args(flags))
    assert (request.attach_console, request.debug_mode) == (attach, attach or GOOD.get("debug_mode", False))
