"""Tests without a machine: alcove_nsm is the enclave's security module, alcove_kms a real KMS that trusts it."""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "app"))
import main


def ask(alcove_kms, ciphertext):
    environment = {name: value for name, value in alcove_kms.environment.items() if name in main.ALLOWED}
    return json.loads(main.respond(json.dumps({"ciphertext": ciphertext, "environment": environment}).encode()))


def test_the_secret_is_decrypted(alcove_nsm, alcove_kms):
    """In an enclave with the image that the key's policy names."""
    key = alcove_kms.create_key({"PCR0": alcove_nsm.pcr(0)})
    found = ask(alcove_kms, alcove_kms.encrypt(key, b"secret"))
    assert found == {"sha256": hashlib.sha256(b"secret").hexdigest()}


def test_another_image_is_refused(alcove_nsm, alcove_kms):
    """And the parent is told why."""
    key = alcove_kms.create_key({"PCR0": alcove_nsm.pcr(0)})
    ciphertext = alcove_kms.encrypt(key, b"secret")
    alcove_nsm.boot({"PCR0": "ab" * 48})
    assert "AccessDenied" in ask(alcove_kms, ciphertext)["error"]


def test_garbage_is_answered(alcove_nsm):
    """Whatever the parent sends."""
    assert "error" in json.loads(main.respond(b"\x00"))
