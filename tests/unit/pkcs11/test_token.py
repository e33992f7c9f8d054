"""Keys on a real SoftHSM 2 token."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from pkcs11 import ObjectClass
from tests.unit.pkcs11.softhsm import PIN, SoftHsm, make_softhsm

from alcove.errors import AlcoveError, MachineError, UsageError
from alcove.pkcs11 import Pkcs11Uri, open_key

URI = "pkcs11:token=hsm;object=k"


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    """A token without keys."""
    return make_softhsm(tmp_path / "softhsm", monkeypatch)


@pytest.fixture
def keyed(hsm: SoftHsm) -> SoftHsm:
    """A token with the key `k` on P-384."""
    hsm.generate(ec.SECP384R1(), "k")
    return hsm


def refusal(hsm: SoftHsm, uri: str, **change: str) -> AlcoveError:
    """What opening a key says; it must not say the PIN."""
    with pytest.raises(AlcoveError) as caught, open_key(uri, environment=hsm.environment | change):
        pass
    assert PIN not in f"{caught.value.message} {caught.value.hint} {caught.value.__cause__!r}"
    return caught.value


@pytest.mark.parametrize(
    ("curve", "digest"),
    [
        (ec.SECP256R1(), hashes.SHA256()),
        (ec.SECP384R1(), hashes.SHA384()),
        (ec.SECP521R1(), hashes.SHA512()),
        (ec.SECP256R1(), hashes.SHA512()),
    ],
    ids=lambda value: value.name,
)
def test_a_signature_of_the_token_verifies(hsm: SoftHsm, curve: ec.EllipticCurve, digest: hashes.HashAlgorithm) -> None:
    """On each curve, under the public key that the token names; also with a digest longer than the curve."""
    hsm.generate(curve, "k")
    with open_key(URI, environment=hsm.environment) as key:
        assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
        assert key.public_key.curve.name == curve.name
        for _ in range(3):
            key.public_key.verify(key.sign(b"message", digest), b"message", ec.ECDSA(digest))


def test_an_rsa_key_signs(hsm: SoftHsm) -> None:
    """PKCS#1 v1.5; a digest that it has no mechanism for is refused."""
    hsm.generate_rsa(2048, "k")
    with open_key(URI, environment=hsm.environment) as key:
        assert isinstance(key.public_key, rsa.RSAPublicKey)
        key.public_key.verify(key.sign(b"m", hashes.SHA384()), b"m", padding.PKCS1v15(), hashes.SHA384())
        with pytest.raises(UsageError, match="sha1"):
            key.sign(b"m", hashes.SHA1())  # noqa: S303


def test_several_threads_may_sign(keyed: SoftHsm) -> None:
    """The session takes one operation at a time."""
    good: list[int] = []
    with open_key(URI, environment=keyed.environment) as key:
        public = key.public_key
        assert isinstance(public, ec.EllipticCurvePublicKey)

        def work() -> None:
            for _ in range(10):
                public.verify(key.sign(b"m", hashes.SHA384()), b"m", ec.ECDSA(hashes.SHA384()))
                good.append(1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(good) == 40


def test_a_key_is_found_by_its_id_and_by_the_tokens_serial(keyed: SoftHsm) -> None:
    """And by a URI that says nothing, when there is but one token and one key; three keys may be open at once."""
    with keyed.session() as session:
        serial, slot = session.token.serial.decode().strip(), session.token.slot.slot_id
    keyed.done()
    uris = (f"pkcs11:serial={serial};id=%01;type=private", f"pkcs11:slot-id={slot};model=SoftHSM%20v2", "pkcs11:")
    environment = keyed.environment
    with (
        open_key(uris[0], environment=environment) as first,
        open_key(Pkcs11Uri.parse(uris[1]), environment=environment) as second,
        open_key(uris[2], environment=environment) as third,
    ):
        assert first.public_key == second.public_key == third.public_key
        third.sign(b"m", hashes.SHA384())
        first.sign(b"m", hashes.SHA384())


def test_module_and_pin_may_come_from_the_uri(keyed: SoftHsm, tmp_path: Path) -> None:
    """module-path or module-name with a directory, and a PIN file; the environment is not asked."""
    (tmp_path / "pin").write_text(PIN + "\n")
    folder = Path(keyed.module).parent
    for module in (f"module-path={keyed.module}", f"module-path={folder}&module-name=softhsm2", "module-name=softhsm2"):
        with open_key(f"{URI}?{module}&pin-source=file:{tmp_path}/pin", environment={}) as key:
            key.sign(b"m", hashes.SHA384())


def test_aws_variables_come_first(keyed: SoftHsm) -> None:
    """NITRO_CLI_PKCS11_MODULE and NITRO_CLI_PKCS11_PIN, as upstream spells them."""
    environment = {"NITRO_CLI_PKCS11_MODULE": keyed.module, "NITRO_CLI_PKCS11_PIN": PIN, "ALCOVE_PKCS11_PIN": "no"}
    with open_key(URI, environment=environment) as key:
        key.sign(b"m", hashes.SHA384())


def test_the_public_half_may_be_missing_on_the_token_for_rsa_only(keyed: SoftHsm) -> None:
    """An RSA private object names its public half; an EC one does not, and then a certificate must be there."""
    keyed.remove(**{"class": ObjectClass.PUBLIC_KEY})
    problem = refusal(keyed, URI)
    assert isinstance(problem, MachineError)
    assert "holds no public key" in problem.message
    keyed.generate_rsa(2048, "r", b"\2")
    keyed.remove(**{"class": ObjectClass.PUBLIC_KEY})
    with open_key("pkcs11:object=r", environment=keyed.environment) as key:
        assert isinstance(key.public_key, rsa.RSAPublicKey)


def test_a_wrong_pin_is_refused_once(keyed: SoftHsm) -> None:
    """One line that does not repeat it; afterwards the right one works."""
    problem = refusal(keyed, URI, ALCOVE_PKCS11_PIN="998877665544")
    assert isinstance(problem, UsageError)
    assert problem.message == "the token `hsm` cannot be opened: it did not accept the PIN"
    assert "998877665544" not in repr(problem) + str(problem.hint)
    with open_key(URI, environment=keyed.environment) as key:
        key.sign(b"m", hashes.SHA384())


@pytest.mark.parametrize(
    ("uri", "change", "kind", "why"),
    [
        (URI, {"ALCOVE_PKCS11_PIN": ""}, UsageError, "needs a PIN"),
        (URI, {"ALCOVE_PKCS11_MODULE": ""}, UsageError, "no PKCS#11 module"),
        (URI, {"ALCOVE_PKCS11_MODULE": "/nonexistent.so"}, MachineError, "is missing"),
        (URI, {"ALCOVE_PKCS11_MODULE": "/etc/passwd"}, MachineError, "cannot be loaded"),
        (f"{URI}?module-name=nonesuch", {}, MachineError, "no PKCS#11 module `nonesuch`"),
        ("pkcs11:token=other;object=k", {}, MachineError, "no PKCS#11 token"),
        ("pkcs11:token=hsm;model=k", {}, MachineError, "no PKCS#11 token"),
        ("pkcs11:token=hsm;object=K", {}, UsageError, "no private key on the token matches"),
        ("pkcs11:token=hsm;object=k;id=%02", {}, UsageError, "no private key on the token matches"),
        ("pkcs11:token=hsm;object=k;type=public", {}, UsageError, "type public"),
        (f"{URI}?pin-source=/nonexistent", {}, UsageError, "cannot read the PIN"),
        (f"{URI}?pin-source=/dev/null", {}, UsageError, "does not hold a PIN"),
    ],
)
def test_what_is_missing_is_named(
    keyed: SoftHsm, uri: str, change: dict[str, str], kind: type[AlcoveError], why: str
) -> None:
    """The caller's mistakes are UsageErrors, the machine's MachineErrors; each has a hint or names the file."""
    problem = refusal(keyed, uri, **change)
    assert type(problem) is kind
    assert why in problem.message


def test_several_that_match_are_refused(keyed: SoftHsm) -> None:
    """Two keys of one label, then two tokens: nothing is guessed."""
    keyed.generate(ec.SECP256R1(), "k", b"\2")
    assert "several private keys" in refusal(keyed, URI).message
    with open_key(f"{URI};id=%02", environment=keyed.environment) as key:
        assert isinstance(key.public_key, ec.EllipticCurvePublicKey)
        assert key.public_key.curve.name == "secp256r1"
    keyed.add_token("second")
    problem = refusal(keyed, "pkcs11:object=k")
    assert "several tokens" in problem.message
    assert "second" in str(problem.hint)


def test_a_public_key_alone_is_told_from_nothing(keyed: SoftHsm) -> None:
    """So that nobody looks for a typing error in the label."""
    keyed.remove(**{"class": ObjectClass.PRIVATE_KEY})
    assert "a public key of that name and no private key" in refusal(keyed, URI).message


def test_a_key_that_may_not_sign_is_refused(hsm: SoftHsm) -> None:
    """CKA_SIGN is false."""
    with hsm.session() as session:
        template = {pkcs11.Attribute.SIGN: False}
        session.generate_keypair(pkcs11.KeyType.RSA, 2048, store=True, label="k", id=b"\1", private_template=template)
    hsm.done()
    assert "not for signing" in refusal(hsm, URI).message


def test_an_error_of_the_block_leaves_nothing_open(keyed: SoftHsm) -> None:
    """The caller's error comes out as it is, and the module is finalized."""
    with pytest.raises(ZeroDivisionError), open_key(URI, environment=keyed.environment):
        raise ZeroDivisionError
    assert not pkcs11._loaded[keyed.module].initialized


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_text("junk"), lambda path: path.unlink()], ids=["junk", "gone"]
)
def test_a_module_without_its_configuration_is_an_error_of_the_machine(
    keyed: SoftHsm, damage: Callable[[Path], Any]
) -> None:
    """SoftHSM fails to start or finds no token; either way one line."""
    damage(keyed.directory / "conf")
    assert isinstance(refusal(keyed, URI), MachineError)
