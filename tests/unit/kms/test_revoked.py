"""Revocation lists beside the trusted roots: who is on one gets nothing, as soon as the file says so."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from cryptography.x509 import load_der_x509_certificate
from tests.unit.kms.authority_harness import GOOD, INSTANCE, REGION, Enclave, make_attester, make_authority
from tests.unit.kms.server_harness import RunningKms, config, running

from alcove.attestation import revocation
from alcove.attestation.authority import Authority
from alcove.errors import AlcoveError, InputError, MachineError
from alcove.kms.list_files import ListFiles


def refusal(kms: RunningKms, enclave: Enclave) -> tuple[str, str]:
    """Code of the error, and what the audit log has as its reason."""
    with pytest.raises(ClientError) as caught:
        kms.admin.generate_random(NumberOfBytes=16, Recipient=enclave.recipient())
    return caught.value.response["Error"]["Code"], str(kms.records()[-1])


def signed_lists(authority: Authority) -> bytes:
    """All lists of an authority, as `alcove ca crl` prints them."""
    revocation.refresh(authority, datetime.now(UTC))
    return b"".join(path.read_bytes() for path in authority.store.crl_paths())


def test_a_revoked_parent_gets_nothing_from_the_next_request_on(tmp_path: Path) -> None:
    """The file is read again when it is another one; the parent's next certificate is good; damage refuses everyone."""
    authority = make_authority(tmp_path / "ca")
    enclave = Enclave(make_attester(authority), GOOD)
    lists = tmp_path / "lists.crl"
    lists.write_bytes(signed_lists(authority))
    with running(config(tmp_path, [authority.root], crls=[lists])) as kms:
        kms.admin.generate_random(NumberOfBytes=16, Recipient=enclave.recipient())
        parent = authority.parent_identity(INSTANCE, REGION, datetime.now(UTC))
        instance = load_der_x509_certificate(parent.cabundle[-1])
        revocation.revoke(authority, instance, datetime.now(UTC))
        lists.write_bytes(signed_lists(authority))
        code, record = refusal(kms, enclave)
        assert code == "ValidationException"
        assert "attestation step 10" in record
        assert "was revoked by" in record
        renewed = Enclave(make_attester(authority), GOOD)
        kms.admin.generate_random(NumberOfBytes=16, Recipient=renewed.recipient())
        lists.write_bytes(b"nonsense")
        code, record = refusal(kms, renewed)
        assert code == "KMSInternalException"
        assert str(lists) in record
        kms.admin.generate_random(NumberOfBytes=16)
        lists.write_bytes(signed_lists(authority))
        kms.admin.generate_random(NumberOfBytes=16, Recipient=renewed.recipient())


@pytest.mark.parametrize(("content", "error"), [(None, MachineError), (b"", InputError), (b"text", InputError)])
def test_a_server_without_its_lists_does_not_start(
    tmp_path: Path, content: bytes | None, error: type[AlcoveError]
) -> None:
    """Missing, empty, something else: one error that names the file."""
    path = tmp_path / "lists.crl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=r"lists\.crl"), running(config(tmp_path, crls=[path])):
        pass


def test_lists_are_read_once(tmp_path: Path) -> None:
    """Without a change they are the same object, which remembers proven signatures; without files there are none."""
    path = tmp_path / "lists.crl"
    authority = make_authority(tmp_path / "ca")
    path.write_bytes(signed_lists(authority))
    files = ListFiles([path])
    first = files.current()
    assert first is not None
    assert files.current() is first
    path.write_bytes(path.read_bytes() + b"\n")
    assert files.current() is not first
    path.unlink()
    with pytest.raises(MachineError):
        files.current()
    assert ListFiles([]).current() is None
