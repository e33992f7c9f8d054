"""Where keys and certificates come from (acm.md §3): what a source gives, as members of a token's order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

from alcove.apps.acm import remote
from alcove.apps.acm.certificates import read_chain
from alcove.apps.acm.files import write_atomically
from alcove.apps.acm.local_ca import LEAF_DAYS, LocalCa
from alcove.apps.acm.remote import MAX_OBJECT
from alcove.apps.acm.settings import TokenSettings
from alcove.apps.acm.stanza import joined
from alcove.errors import AlcoveError, InputError, MachineError, UsageError

ACM_LABEL: Final = "acm-key"  # AWS's names of the keys
S3_LABEL: Final = "s3-key"
BORN_LABEL: Final = "alcove-key"
FIRST_ORDER_PAUSE: Final = timedelta(seconds=30)  # after an ACME server did not issue; doubled each time
LONGEST_ORDER_PAUSE: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Material:
    """Keys and certificates of one token.

    Attributes:
        keys: As in AddToken.
        certificate: The first key's chain, PEM; empty when the source has none.
    """

    keys: tuple[dict[str, Any], ...] = field(repr=False)
    certificate: str

    @property
    def expires(self) -> datetime | None:
        """When the first of its certificates ends."""
        if not self.certificate:
            return None
        return min(each.not_valid_after_utc for each in read_chain(self.certificate))


@dataclass(frozen=True, slots=True)
class Birth:
    """What the enclave gives for a key that was born in it."""

    sealed_key: str
    request_pem: str
    document: bytes


Create = Callable[[TokenSettings], Birth]  # asks the enclave
Verify = Callable[[bytes, str], None]  # a document and the request that it must speak for; raises AlcoveError
Issue = Callable[[str], str]  # a request in, a chain out


def export(members: Mapping[str, Any], text: bytes, label: str) -> Material:
    """AWS's object: {certificate, certificateChain, encryptedPrivateKey, encryptionMethod}.

    Raises:
        InputError: It is not such an object.
    """
    try:
        found = json.loads(text)
        chain = joined(found["certificate"], found.get("certificateChain") or "")
        encrypted = found["encryptedPrivateKey"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("this is no export: an object with certificate and encryptedPrivateKey") from None
    key = {"encrypted_pem_b64": encrypted, "id": 1, "label": label, "cert_pem": chain}
    return Material((key | ({"bound": True} if members.get("bound") else {}),), chain)


def fetch(token: TokenSettings) -> Material:
    """What a source that lies ready holds now.

    Raises:
        AlcoveError: It cannot be had, or is not what it should be.
    """
    return _FETCH[token.source](token.members)


def _file(members: Mapping[str, Any]) -> Material:
    """File: AWS's export in a file, or behind a URL."""
    path, url = members.get("path"), members.get("url")
    if (path is None) == (url is None):
        raise UsageError("the source File has a path or a url")
    ca_file = members.get("ca_file")
    text = _read(str(path)) if path is not None else remote.https(str(url), None if ca_file is None else str(ca_file))
    return export(members, text, ACM_LABEL)


def _s3(members: Mapping[str, Any]) -> Material:
    """S3: AWS's export in a bucket."""
    return export(members, remote.s3(str(members["uri"])), S3_LABEL)


def _acm(_: Mapping[str, Any]) -> Material:
    raise UsageError(
        "the source Acm works on AWS alone, where an instance's role leads to the bucket",
        hint="name the exported object with S3 {uri} or File {path}, or have a key born in the enclave with LocalCa",
    )


def _file_db(members: Mapping[str, Any]) -> Material:
    """FileDb: AWS's array of keys."""
    try:
        found = json.loads(_read(str(members["path"])))
        keys = tuple(
            [{name: item.get(name) for name in ("encrypted_pem_b64", "id", "label", "cert_pem")} for item in found]
        )
        chain = joined(keys[0]["cert_pem"] or "", "")
    except (ValueError, TypeError, AttributeError, LookupError):
        raise InputError(f"{members['path']} is no array of keys") from None
    return Material(keys, chain)


def _pkcs12(members: Mapping[str, Any]) -> Material:
    """Pkcs12: key and certificates in a file, in clear on this machine: for trying out."""
    password = None
    if members.get("password_file") is not None:
        password = _read(str(members["password_file"])).rstrip(b"\n")
    try:
        found = load_pkcs12(_read(str(members["path"])), password)
    except ValueError:
        raise InputError(f"{members['path']} is no PKCS#12 file, or the password is another") from None
    except UnsupportedAlgorithm as error:
        raise InputError(f"{members['path']} has a key of a kind that is not known: {error}") from None
    if found.key is None or found.cert is None:
        raise InputError(f"{members['path']} has no key, or no certificate")
    chain = "".join(
        each.certificate.public_bytes(Encoding.PEM).decode() for each in (found.cert, *found.additional_certs)
    )
    pem = found.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return Material(({"pem": pem, "id": 1, "label": BORN_LABEL, "cert_pem": chain},), chain)


_FETCH: Final[dict[str, Callable[[Mapping[str, Any]], Material]]] = {
    "File": _file,
    "S3": _s3,
    "Acm": _acm,
    "FileDb": _file_db,
    "Pkcs12": _pkcs12,
}
LYING_READY: Final = frozenset(_FETCH)
IN_CLEAR: Final = frozenset({"Pkcs12"})  # these need no KMS


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What an ACME server refused, and until when it is not asked again."""

    said: AlcoveError
    pause: timedelta
    until: datetime


class BornKeys:
    """Keys that were born in the enclave: what is kept of them, and when they are made anew.

    Args:
        directory: Where sealed keys and certificates are kept, one file a token.
        create: Has the enclave make a key.
        verify: Checks that the enclave's image made the request.
    """

    def __init__(self, directory: Path, create: Create, verify: Verify) -> None:
        self._directory, self._create, self._verify = directory, create, verify
        self._refused: dict[str, _Refusal] = {}  # by label

    def material(self, token: TokenSettings, now: datetime, *, anew: bool = False) -> Material:
        """The key that is kept, or a new one when there is none, it is for other names, or its time is nearly over.

        Raises:
            AlcoveError: A key is needed, and it cannot be made or certified.
        """
        kept = None if anew else self._kept(token)
        if kept is not None and not _due(kept, now):
            return kept
        try:
            return self._born(token, now)
        except AlcoveError:
            if kept is not None and kept.expires is not None and kept.expires > now:
                return kept  # the next round tries again
            raise

    def _born(self, token: TokenSettings, now: datetime) -> Material:
        self._must_be_writable()  # before a certificate is asked for that could not be kept
        refused = self._refused.get(token.label)
        if refused is not None and now < refused.until:
            raise MachineError(refused.said.message, hint=refused.said.hint)
        birth = self._create(token)
        self._verify(birth.document, birth.request_pem)
        try:
            chain = self._issue(token, now)(birth.request_pem)
        except AlcoveError as error:
            if token.source == "Acme":  # such servers count failures, and shut out who has many
                pause = FIRST_ORDER_PAUSE if refused is None else min(2 * refused.pause, LONGEST_ORDER_PAUSE)
                self._refused[token.label] = _Refusal(error, pause, now + pause)
            raise
        self._refused.pop(token.label, None)
        key = {"sealed_key": birth.sealed_key, "id": 1, "label": BORN_LABEL, "cert_pem": chain}
        record = {"domains": sorted(token.domains or ()), "key": key}
        write_atomically(self._file(token), json.dumps(record), 0o600)
        return Material((key,), chain)

    def _must_be_writable(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"{self._directory} cannot be made: {error.strerror}") from None
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise MachineError(f"{self._directory} cannot be written to: the key would be lost")

    def _issue(self, token: TokenSettings, now: datetime) -> Issue:
        if token.source == "Acme":
            from alcove.apps.acm.acme_client import issuer  # noqa: PLC0415 - only this source needs its packages

            return issuer(token)
        days = token.members.get("lifetime_days", LEAF_DAYS)
        if not isinstance(days, int | float) or not 0 < days <= 825:
            raise UsageError("lifetime_days of LocalCa is more than 0 and at most 825")
        authority = LocalCa.open(Path(token.members["directory"]), now)

        def sign(request_pem: str) -> str:
            leaf = authority.issue(request_pem, token.domains or (), now, timedelta(days=days))
            return joined(leaf, authority.certificate.public_bytes(Encoding.PEM).decode())

        return sign

    def _kept(self, token: TokenSettings) -> Material | None:
        try:
            record = json.loads(self._file(token).read_text())
            if record["domains"] != sorted(token.domains or ()):
                return None
            kept = Material((record["key"],), record["key"]["cert_pem"])
            read_chain(kept.certificate)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
            return None
        return kept

    def _file(self, token: TokenSettings) -> Path:
        return self._directory / f"{token.label.encode().hex()}.json"


def _due(material: Material, now: datetime) -> bool:
    """Whether a third of the certificate's time, or less, is left."""
    leaf = read_chain(material.certificate)[0]
    whole = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return leaf.not_valid_after_utc - now <= whole / 3


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_OBJECT + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if len(text) > MAX_OBJECT:
        raise InputError(f"{path} is larger than {MAX_OBJECT} bytes")
    return text
