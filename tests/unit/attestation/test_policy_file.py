from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.attestation.chains import World

from alcove.attestation.policy import (
    PCR,
    AllOf,
    AnyOf,
    ImageSHA384,
    Parent,
    Policy,
    Role,
    SignedBy,
    UnsafeAcceptDebugMode,
)
from alcove.attestation.policy_file import parse_policy, policy_from_data
from alcove.errors import UsageError

ONE = b"\1" * 48
TWO = b"\2" * 48
ROLE = "arn:aws:iam::123456789012:role/Example"
INSTANCE = "i-0123456789abcdef0"


@pytest.mark.parametrize(
    ("raw", "policy"),
    [
        ({"PCR0": ONE.hex(), "pcr1": TWO.hex().upper()}, AllOf([PCR(0, ONE), PCR(1, TWO)])),
        ({"PCR31": [ONE.hex(), TWO.hex()]}, AllOf([AnyOf([PCR(31, ONE), PCR(31, TWO)])])),
        ({"PCR31": [ONE.hex()]}, AllOf([PCR(31, ONE)])),
        ({"Measurements": {"HashAlgorithm": "Sha384 { ... }", "PCR0": ONE.hex()}}, AllOf([PCR(0, ONE)])),
        ({"ImageSha384": ONE.hex()}, AllOf([ImageSHA384(ONE)])),
        ({"Parent": INSTANCE, "role": ROLE}, AllOf([Parent(INSTANCE), Role(ROLE)])),
        ({"Parent": [INSTANCE, "i-01234567"]}, AllOf([AnyOf([Parent(INSTANCE), Parent("i-01234567")])])),
        ({"AllOf": [{"PCR0": ONE.hex()}]}, AllOf([AllOf([AllOf([PCR(0, ONE)])])])),
        (
            {"AnyOf": [{"PCR0": ONE.hex()}, {"PCR0": TWO.hex(), "Role": ROLE}]},
            AllOf([AnyOf([AllOf([PCR(0, ONE)]), AllOf([PCR(0, TWO), Role(ROLE)])])]),
        ),
        (
            {"PCR3": ONE.hex(), "UnsafeAcceptDebugMode": True},
            AllOf([PCR(3, ONE), UnsafeAcceptDebugMode()]),
        ),
    ],
)
def test_data_describes_a_policy(raw: object, policy: Policy) -> None:
    """Names in any case, a list for a choice, the answer of build-enclave as it is, the same from JSON text."""
    assert policy_from_data(raw) == policy
    assert parse_policy(json.dumps(raw)) == policy


def test_debug_mode_may_be_accepted_from_outside() -> None:
    """As `--allow-debug` does."""
    assert policy_from_data({"PCR0": ONE.hex()}, allow_debug=True) == AllOf([PCR(0, ONE), UnsafeAcceptDebugMode()])


@pytest.mark.parametrize(
    "raw",
    [
        None, [], "PCR0", {}, {"HashAlgorithm": "x"}, {"PCR32": ONE.hex()}, {"PCR00": ONE.hex()}, {"pcr": ONE.hex()},
        {0: ONE.hex()}, {"PCR0": ""}, {"PCR0": "zz" * 48}, {"PCR0": ONE}, {"PCR0": 0}, {"PCR0": None}, {"PCR0": []},
        {"PCR0": [None]}, {"PCR0": ONE.hex() + "00"}, {"Measurements": {}}, {"Measurements": None},
        {"Parent": "x"}, {"Parent": 1}, {"Role": []}, {"Role": {}}, {"SignedBy": "/nowhere.pem"}, {"SignedBy": None},
        {"SignedBy": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"},
        {"AllOf": []}, {"AnyOf": []}, {"AllOf": {}}, {"AllOf": [{}]}, {"AnyOf": ["PCR0"]}, {"AnyOf": None},
        {"UnsafeAcceptDebugMode": True}, {"PCR0": ONE.hex(), "UnsafeAcceptDebugMode": False},
        {"PCR0": ONE.hex(), "UnsafeAcceptDebugMode": "yes"}, {"AnyOf": [{"UnsafeAcceptDebugMode": True}]},
        {"NoDebugMode": True}, {"GenuineOnly": True},
    ],
)  # fmt: skip
def test_data_that_describes_no_policy_is_refused(raw: object) -> None:
    """A misspelt register must not mean "accept all"."""
    with pytest.raises(UsageError):
        policy_from_data(raw)


def test_yaml_is_read_where_its_reader_is_installed() -> None:
    """The same policy in the form that people write."""
    text = f"# two versions\nAnyOf:\n- PCR0: '{ONE.hex()}'\n- PCR0: \"{TWO.hex()}\"\nRole: {ROLE}\n"
    assert parse_policy(text) == AllOf([AnyOf([AllOf([PCR(0, ONE)]), AllOf([PCR(0, TWO)])]), Role(ROLE)])


def test_without_a_reader_of_yaml_the_answer_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier alone does not install one, and JSON is read all the same."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert parse_policy(json.dumps({"PCR0": ONE.hex()})) == AllOf([PCR(0, ONE)])
    with pytest.raises(UsageError, match="not JSON") as caught:
        parse_policy(f"PCR0: '{ONE.hex()}'")
    assert "pyyaml" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "mapping"),
        ("{", "neither JSON nor YAML"),
        ("\0", "neither JSON nor YAML"),
        ("!!python/object:os.system {}", "neither JSON nor YAML"),
        ("&a {AllOf: [*a]}", "neither JSON nor YAML"),
        ("!!bool maybe", "neither JSON nor YAML"),
        ("!!int", "neither JSON nor YAML"),
        ("!!timestamp 2001-13", "neither JSON nor YAML"),
        ("!!map [PCR0]", "neither JSON nor YAML"),
        ("!!set {PCR0}", "mapping"),
        (f'{{"PCR0": "{ONE.hex()}", "PCR0": "{TWO.hex()}"}}', "twice"),
        (f"PCR0: '{ONE.hex()}'\nPCR0: '{TWO.hex()}'", "twice"),
        (f"PCR0: '{ONE.hex()}'\npcr0: '{TWO.hex()}'", "twice"),
        (f"? [PCR0]\n: '{ONE.hex()}'", "no name"),
        (f"1: '{ONE.hex()}'", "no name"),
        ("<<: {PCR0: x}", "neither JSON nor YAML"),
        ('{"AllOf": [' * 17 + "{}" + "]}" * 17, "too deep"),
        ('{"AllOf": [' * 100_000, "too deep"),
        ("[" * 100_000, "too deep"),
    ],
)
def test_texts_that_are_no_policy_are_refused_in_one_line(text: str, reason: str) -> None:
    """Whatever is wrong with a file, the answer is a sentence."""
    with pytest.raises(UsageError, match=reason) as caught:
        parse_policy(text)
    assert "\n" not in caught.value.message


def test_a_small_text_makes_no_large_policy() -> None:
    """Aliases that multiply, and a hundred thousand names, are refused by their number, before anything is built."""
    leaf = f"a0: &a0 {{PCR0: '{ONE.hex()}'}}"
    levels = [f"a{at}: &a{at} {{AllOf: [{', '.join([f'*a{at - 1}'] * 10)}]}}" for at in range(1, 15)]
    for text in ("\n".join([leaf, *levels]), json.dumps({f"PCR{at}": ONE.hex() for at in range(100_000)})):
        with pytest.raises(UsageError, match="more than 10000 items"):
            parse_policy(text)


def test_a_signer_is_named_by_a_file_or_given_itself(world: World, tmp_path: Path) -> None:
    """Both are the first certificate of a PEM text."""
    pem = world.issuers[0].certificate.public_bytes(Encoding.PEM)
    (tmp_path / "signer.pem").write_bytes(pem)
    expected = AllOf([SignedBy(world.cabundle[0])])
    assert policy_from_data({"SignedBy": pem.decode()}) == expected
    assert (
        policy_from_data({"SignedBy": "signer.pem"}, read_file=lambda name: (tmp_path / name).read_bytes()) == expected
    )
