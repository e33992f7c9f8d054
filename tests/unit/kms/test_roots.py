"""Several roots of attestation at once, and the same document twice (kms.md §5.2, §26)."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.attestation.conftest import aws_documents
from tests.unit.kms.authority_harness import GOOD, Enclave, make_attester, make_authority
from tests.unit.kms.in_process import InProcess, in_process
from tests.unit.kms.server_harness import config, refused, running

from alcove.attestation.document import parse_document
from alcove.attestation.verify import Root


def test_each_trusted_root_counts_and_no_other(tmp_path: Path) -> None:
    """Two authorities are served by one process, AWS's fingerprint beside them; a third is a stranger."""
    ours, theirs, strange = (make_authority(tmp_path / name) for name in ("ours", "theirs", "strange"))
    with running(config(tmp_path, [ours.root, Root.AWS, theirs.root])) as kms:
        for authority in (ours, theirs, ours):
            enclave = Enclave(make_attester(authority), GOOD)
            answer = kms.admin.generate_random(NumberOfBytes=32, Recipient=enclave.recipient())
            assert len(enclave.open(answer["CiphertextForRecipient"])) == 32
        with refused("ValidationException") as error:
            kms.admin.generate_random(NumberOfBytes=32, Recipient=Enclave(make_attester(strange), GOOD).recipient())
        assert error["message"] == "the attestation document is not valid"


def test_without_roots_nobody_is_attested(tmp_path: Path) -> None:
    """A service that trusts none refuses every document, and answers calls without one."""
    enclave = Enclave(make_attester(make_authority(tmp_path / "ca")), GOOD)
    with running(config(tmp_path)) as kms:
        with refused("ValidationException"):
            kms.admin.generate_random(NumberOfBytes=1, Recipient=enclave.recipient())
        assert len(kms.admin.generate_random(NumberOfBytes=1)["Plaintext"]) == 1


def test_a_document_that_comes_again_shows_in_the_log(tmp_path: Path) -> None:
    """A replay within five minutes is answered, to the enclave's key alone, and both records name one document."""
    authority = make_authority(tmp_path / "ca")
    enclave = Enclave(make_attester(authority), GOOD)
    once = enclave.recipient()
    with running(config(tmp_path, [authority.root])) as kms:
        for recipient in (once, once, enclave.recipient()):
            answer = kms.admin.generate_random(NumberOfBytes=8, Recipient=recipient)
            assert len(enclave.open(answer["CiphertextForRecipient"])) == 8
    seen = [r["additionalEventData"]["recipient"]["attestationDocumentSha256"] for r in kms.records()]
    assert seen[0] == seen[1] == hashlib.sha256(once["AttestationDocument"]).hexdigest()
    assert seen[2] != seen[0]


def asked(kms: InProcess, document: bytes) -> str:
    """What GenerateRandom says to a document."""
    parameter = {
        "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
        "AttestationDocument": base64.b64encode(document).decode(),
    }
    answer = kms.send("GenerateRandom", json.dumps({"NumberOfBytes": 8, "Recipient": parameter}).encode())
    found: dict[str, Any] = json.loads(answer.body)
    assert found["__type"] == "ValidationException"
    return str(found["message"])


def test_documents_that_aws_issued_are_verified_here(tmp_path: Path) -> None:
    """At the moment of its making one passes every check but the last: the published ones have no RSA key to answer to.

    Below another root it is not valid at all, and six minutes later it is too old.
    """
    folder = aws_documents()
    if folder is None:
        pytest.skip("real AWS documents are not here; name their folder in ALCOVE_AWS_DOCUMENTS")
    document = (folder / "aws-2024-08-07.cbor").read_bytes()
    made, other = parse_document(document).timestamp, make_authority(tmp_path / "ca").root
    for roots, later, words in (
        ([other, Root.AWS], 1, "the attestation document cannot be used"),
        ([other], 1, "the attestation document is not valid"),
        ([other, Root.AWS], 301, "the attestation document exceeded the five-minute age limit"),
    ):
        moment = made + timedelta(seconds=later)
        place = tmp_path / f"{len(roots)}-{later}"
        place.mkdir()
        with in_process(place, roots, lambda moment=moment: moment) as kms:
            assert asked(kms, document).startswith(words)
