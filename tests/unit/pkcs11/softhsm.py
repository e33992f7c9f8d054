"""A SoftHSM 2 token in a directory of its own."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute, KeyType
from pkcs11.util.ec import encode_named_curve_parameters

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so")
MODULE = next((path for path in MODULES if Path(path).is_file()), None)
PIN = "a PIN of 31 4159"


@dataclass(frozen=True, slots=True)
class SoftHsm:
    """A token; `environment` is what a program needs to use it."""

    directory: Path
    module: str

    @property
    def environment(self) -> dict[str, str]:
        """Module and PIN, and where SoftHSM finds its tokens."""
        return {"SOFTHSM2_CONF": str(self.directory / "conf"), "ALCOVE_PKCS11_MODULE": self.module} | self.pin

    @property
    def pin(self) -> dict[str, str]:
        """The PIN alone."""
        return {"ALCOVE_PKCS11_PIN": PIN}

    def add_token(self, label: str) -> None:
        """Another token."""
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "12345678"]
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=os.environ | self.environment)

    def session(self, label: str = "hsm") -> Any:
        """A writing session of the library's own, to be used as a context manager; then call `done`."""
        return pkcs11.lib(self.module).get_token(token_label=label).open(rw=True, user_pin=PIN)

    def done(self) -> None:
        """Lets the module go."""
        pkcs11.lib(self.module).finalize()

    def generate(self, curve: ec.EllipticCurve, label: str, key_id: bytes = b"\1") -> None:
        """A key pair that never leaves the token."""
        with self.session() as session:
            attributes = {Attribute.EC_PARAMS: encode_named_curve_parameters(curve.name)}
            parameters = session.create_domain_parameters(KeyType.EC, attributes, local=True)
            parameters.generate_keypair(store=True, label=label, id=key_id)
        self.done()

    def generate_rsa(self, bits: int, label: str, key_id: bytes = b"\1") -> None:
        """An RSA key pair."""
        with self.session() as session:
            session.generate_keypair(KeyType.RSA, bits, store=True, label=label, id=key_id)
        self.done()

    def remove(self, **which: Any) -> None:
        """Removes the objects with these attributes."""
        with self.session() as session:
            names = {Attribute[name.upper()]: value for name, value in which.items()}
            for found in list(session.get_objects(names)):
                found.destroy()
        self.done()


def make_softhsm(directory: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    """A module with one token, `hsm`; skips where SoftHSM is not installed."""
    if MODULE is None:
        pytest.skip("SoftHSM 2 is not installed; scripts/setup --tests installs it")
    (directory / "tokens").mkdir(parents=True)
    (directory / "conf").write_text(f"directories.tokendir = {directory}/tokens\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(directory / "conf"))  # the module reads the real environment
    hsm = SoftHsm(directory, MODULE)
    hsm.add_token("hsm")
    return hsm
