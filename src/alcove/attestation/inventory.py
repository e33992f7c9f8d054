"""What an authority's directory holds, and what will need a person soon; private keys are not taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from alcove.attestation import pki
from alcove.attestation.files import read_file
from alcove.attestation.place import Level
from alcove.attestation.revocation import number_of, read_list
from alcove.attestation.root_key import Kind
from alcove.attestation.store import Store, common_name, fingerprint, is_issued_by, pem, read_chain

ROOT_NOTICE: Final = timedelta(days=365)  # verifiers everywhere have to learn another root
LIST_NOTICE: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to do; `urgent` when documents cannot be made until it is done."""

    text: str
    hint: str
    urgent: bool = False


def take_inventory(store: Store, now: datetime) -> dict[str, Any]:
    """Everything of a directory as JSON has it: the root, the chains, the fleet, the lists and the notices.

    Raises:
        UsageError: There is no root.
        MachineError: A file cannot be read.
    """
    place, coming = store.key_place(), store.next
    root = _certificate(store.root(), "root") | {"Key": {"Kind": place.kind.value, "Where": place.where}}
    return {
        "Directory": str(store.directory),
        "Root": root,
        "Chains": [_chain(store, region) for region in store.regions()],
        "Parents": [
            _certificate(chain[-1], _level(len(chain))) | {"Parent": path.stem}
            for path in sorted(store.directory.glob("parents/*.pem"))
            for chain in [read_chain(path)]
        ],
        "NextRoot": _certificate(coming.root(), "root") if coming.root_path.exists() else None,
        "FormerRoots": [_certificate(certificate, "root") for certificate in store.former_roots()],
        "RevocationLists": [_list(path) for path in store.crl_paths()],
        "Notices": [{"Text": n.text, "Hint": n.hint, "Urgent": n.urgent} for n in notices(store, now)],
    }


def notices(store: Store, now: datetime) -> list[Notice]:
    """What will need a person soon. Errors as in `take_inventory`."""
    found = [*_root_notices(store, now), *_chain_notices(store, now)]
    for path in store.crl_paths():
        crl = read_list(path)
        if crl.next_update_utc is not None and crl.next_update_utc - LIST_NOTICE < now:
            text = f"the revocation list {path.name} runs out at {_time(crl.next_update_utc)}"
            found.append(Notice(text, "`alcove ca crl` signs it anew"))
    return found


def public_files(store: Store) -> dict[str, bytes]:
    """What a verifier may want, by relative path: a file for each trusted root, the chains, the revocation lists.

    Errors as in `take_inventory`.
    """
    coming = [store.next.root()] if store.next.root_path.exists() else []
    roots = [store.root(), *coming, *store.former_roots()]
    files = {f"roots/{fingerprint(root)}.pem": pem(root) for root in roots}
    for region in store.regions():
        certificates = [read_chain(path)[0] for _, path in _issuers(store, region)]
        files[f"chains/{region}.pem"] = b"".join(map(pem, certificates))
    return files | {f"crl/{path.name}": read_file(path) for path in store.crl_paths()}


def _root_notices(store: Store, now: datetime) -> list[Notice]:
    end = store.root().not_valid_after_utc
    if end - ROOT_NOTICE > now:
        return []
    return [Notice(f"the root ends at {_time(end)}", "`alcove ca rotate --root` makes another", end < now)]


def _chain_notices(store: Store, now: datetime) -> list[Notice]:
    """What only a person can renew: the topmost issuer with a key here, when the root's key asks for somebody."""
    place = store.key_place()
    if place.kind is Kind.PLAIN:
        return []
    hint = "`alcove ca rotate` renews it, with the root's key at hand"
    if place.kind is Kind.ELSEWHERE:
        hint = "`alcove ca request` here, `alcove ca issue-parent` where the root is, `alcove ca install` here"
    found = []
    for region in store.regions():
        level, path = next(((level, path) for level, path in _issuers(store, region) if _has_key(path)), (None, None))
        if level is None or path is None:
            continue
        certificate = read_chain(path)[0]
        if now > (end := certificate.not_valid_after_utc) - level.reserve:
            over = now > end - pki.LEAF_LIFE
            said = "ended" if over else "ends"
            text = f"{common_name(certificate)} {said} at {_time(end)}, and the root's key is in: {place.kind.value}"
            found.append(Notice(text, hint, over))
    return found


def _issuers(store: Store, region: str) -> list[tuple[Level, Path]]:
    """The files of a Region, from the top down."""
    upper = [(level, store.chain_path(region, level)) for level in (Level.REGIONAL, Level.ZONAL)]
    instances = sorted((store.directory / region).glob("i-*.pem"))
    return [entry for entry in (*upper, *((Level.INSTANCE, path) for path in instances)) if entry[1].exists()]


def _has_key(path: Path) -> bool:
    return b"PRIVATE KEY-----" in read_file(path)


def _chain(store: Store, region: str) -> dict[str, Any]:
    rows, above = [], store.root()
    for level, path in _issuers(store, region):
        key = {"Kind": Kind.PLAIN.value, "Where": str(path)} if _has_key(path) else {"Kind": Kind.ELSEWHERE.value}
        certificate = read_chain(path)[0]
        # what another root or an issuer before this one has signed is replaced when it is needed next
        rows.append(
            _certificate(certificate, level) | {"Current": is_issued_by(certificate, above), "Key": {"Where": ""} | key}
        )
        above = certificate if level is not Level.INSTANCE else above
    return {"Region": region, "Certificates": rows}


def _certificate(certificate: x509.Certificate, level: str) -> dict[str, Any]:
    return {
        "Level": str(level),
        "Name": common_name(certificate),
        "Subject": certificate.subject.rfc4514_string(),
        "Serial": f"{certificate.serial_number:x}",
        "NotBefore": _time(certificate.not_valid_before_utc),
        "NotAfter": _time(certificate.not_valid_after_utc),
        "SHA256": fingerprint(certificate),
    }


def _list(path: Path) -> dict[str, Any]:
    crl = read_list(path)
    name = crl.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    return {
        "Issuer": name,
        "File": str(path),
        "Number": number_of(crl),
        "ThisUpdate": _time(crl.last_update_utc),
        "NextUpdate": _time(crl.next_update_utc or crl.last_update_utc),
        "Revoked": [f"{entry.serial_number:x}" for entry in crl],
    }


def _level(length: int) -> str:
    return [*Level][length - 2] if 2 <= length <= 4 else "unknown"


def _time(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
