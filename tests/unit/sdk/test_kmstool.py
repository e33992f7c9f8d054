from __future__ import annotations

import base64
import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alcove.cli import kmstool as program
from alcove.errors import MachineError
from alcove.sdk import entropy, vsock
from alcove.sdk.endpoint import Credentials
from alcove.sdk.servers import kmstool_server
from alcove.sdk.servers.kmstool import MAX_MESSAGE, Conversation, Framer, MessageTooLargeError
from alcove.testing import LocalKms, SimulatedNSM

CREDENTIALS = {"AwsAccessKeyId": "k", "AwsSecretAccessKey": "s"}


class Kms:
    """What a conversation asks: it knows one ciphertext, and remembers who asked."""

    def __init__(self) -> None:
        self.made: list[tuple[str, Credentials]] = []
        self.contexts: list[Mapping[str, str]] = []

    def make(self, region: str, credentials: Credentials) -> Callable[[bytes, Mapping[str, str]], bytes]:
        """A client."""
        if region == "nowhere":
            raise MachineError("no such Region")
        self.made.append((region, credentials))
        return self.decrypt

    def decrypt(self, ciphertext: bytes, context: Mapping[str, str]) -> bytes:
        """The plaintext of `good`."""
        self.contexts.append(context)
        if ciphertext != b"good":
            raise MachineError("no")
        return b"plain"


def ask(conversation: Conversation, request: Any) -> dict[str, str]:
    return conversation.answer(json.dumps(request).encode())


def test_a_conversation_sets_a_client_and_decrypts() -> None:
    """AWS's requests and replies, with a context; and one reply to a request."""
    kms = Kms()
    conversation = Conversation(kms.make, "eu-west-1")
    assert ask(conversation, {"Operation": "SetClient", **CREDENTIALS, "AwsSessionToken": "t"}) == {"Status": "Ok"}
    asked = {"Operation": "Decrypt", "Ciphertext": "Z29vZA==", "EncryptionContext": {"a": "b"}}
    assert ask(conversation, asked) == {"Status": "Ok", "Message": "cGxhaW4="}
    assert kms.made == [("eu-west-1", Credentials("k", "s", "t"))]
    assert kms.contexts == [{"a": "b"}]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("{", "Error reading JSON object"),
        ("[" * 5000, "Error reading JSON object"),
        ("[]", "JSON is wrong type"),
        ("{}", "JSON structure incomplete"),
        ('{"Operation": 1}', "Operation is wrong type"),
        ('{"Operation": "Encrypt"}', "Operation not recognized"),
        ('{"Operation": "Decrypt", "Ciphertext": "Z29vZA=="}', "Client not initialized"),
        ('{"Operation": "SetClient"}', "Could not read credentials"),
        ('{"Operation": "SetClient", "AwsAccessKeyId": "k", "AwsSecretAccessKey": 1}', "Could not read credentials"),
    ],
)
def test_errors_before_a_client_is_set(request_: str, message: str) -> None:
    """AWS's words for what is wrong with a request."""
    assert Conversation(Kms().make, "r").answer(request_.encode()) == {"Status": "Error", "Message": message}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "Message does not contain a Ciphertext"),
        ({"Ciphertext": 1}, "Message does not contain a Ciphertext"),
        ({"Ciphertext": "*"}, "Ciphertext not a base64 string"),
        ({"Ciphertext": "YmFk"}, "Could not decrypt ciphertext"),
        ({"Ciphertext": "Z29vZA==", "EncryptionContext": {"a": 1}}, "Could not decrypt ciphertext"),
        ({"Ciphertext": "Z29vZA==", "EncryptionContext": "x"}, "Could not decrypt ciphertext"),
    ],
)
def test_errors_of_decrypt(members: dict[str, Any], message: str) -> None:
    """AWS's words for what cannot be decrypted; the next request is served."""
    conversation = Conversation(Kms().make, "r")
    ask(conversation, {"Operation": "SetClient", **CREDENTIALS})
    assert ask(conversation, {"Operation": "Decrypt", **members}) == {"Status": "Error", "Message": message}
    assert ask(conversation, {"Operation": "Decrypt", "Ciphertext": "Z29vZA=="})["Status"] == "Ok"


def test_the_region_is_set_on_one_side() -> None:
    """By the enclave or by the parent: both, or neither, is an error; so is one that no client can be made for."""
    wrong = {"Status": "Error", "Message": "Could not set region correctly, check configuration."}
    both = {"Operation": "SetClient", **CREDENTIALS, "AwsRegion": "us-east-1"}
    neither = {"Operation": "SetClient", **CREDENTIALS}
    assert ask(Conversation(Kms().make, "eu-west-1"), both) == wrong
    assert ask(Conversation(Kms().make), neither) == wrong
    assert ask(Conversation(Kms().make), both) == {"Status": "Ok"}
    unmade = ask(Conversation(Kms().make), both | {"AwsRegion": "nowhere"})
    assert unmade == {"Status": "Error", "Message": "Could not create new client"}


@given(st.lists(st.binary(max_size=40).filter(lambda b: b"\0" not in b), max_size=5), st.integers(1, 7))
def test_messages_are_cut_at_nul(messages: list[bytes], step: int) -> None:
    """However the bytes come, the messages are the same."""
    data = b"".join(message + b"\0" for message in messages)
    framer = Framer()
    found = [m for at in range(0, len(data), step) for m in framer.receive(data[at : at + step])]
    assert found == messages


def test_a_message_has_a_limit() -> None:
    """8192 bytes with its NUL, as upstream; more is refused, with or without an end."""
    assert list(Framer().receive(bytes([1]) * (MAX_MESSAGE - 1) + b"\0"))
    for data in (bytes([1]) * MAX_MESSAGE, bytes([1]) * MAX_MESSAGE + b"\0"):
        with pytest.raises(MessageTooLargeError):
            list(Framer().receive(data))


def test_hostile_peers_do_not_take_the_server_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent peers lose their places; after garbage, a flood and an early close the next one is served."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(
        target=kmstool_server.serve, args=(listener, lambda: Conversation(Kms().make, "r")), daemon=True
    )
    with monkeypatch.context() as patience:
        patience.setattr(kmstool_server, "IDLE_SECONDS", 0.1)
        thread.start()
        address = listener.getsockname()
        silent = [socket.create_connection(address, timeout=60) for _ in range(2 * kmstool_server.MAX_CONNECTIONS)]
        for stream in silent:
            with stream:
                assert stream.recv(1) == b""
    with socket.create_connection(address, timeout=60) as stream:
        stream.sendall(b"x" * MAX_MESSAGE)
        assert b"Message size too large." in stream.recv(1000)
    with socket.create_connection(address) as stream:
        stream.sendall(b"\0\0\0{")
    with socket.create_connection(address, timeout=60) as stream:
        stream.sendall(b'{"Operation": "SetClient", "AwsAccessKeyId": "k", "AwsSecretAccessKey": "s"}\0')
        assert stream.recv(1000) == b'{"Status": "Ok"}\0'
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=60)
    assert not thread.is_alive()
    listener.close()


Run = Callable[..., tuple[int, str, str]]
GIVEN = ["-k", "k", "-s", "s", "-t", "t"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """kmstool_enclave_cli with an argument list and an environment; status, stdout and stderr."""

    def run(*words: str, **environment: str) -> tuple[int, str, str]:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_KMS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["kmstool_enclave_cli", *words])
        with pytest.raises(SystemExit) as ended:
            program.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def enclave(alcove_nsm: SimulatedNSM, alcove_kms: LocalKms, monkeypatch: pytest.MonkeyPatch) -> LocalKms:
    """Port 8000 of the parent leads to the KMS; what is seeded is written down."""
    monkeypatch.setattr(
        vsock, "_open", lambda port, cid: socket.create_connection(("127.0.0.1", {8000: alcove_kms.port}[port]))
    )
    monkeypatch.setattr(entropy, "seed", lambda source, size: seeded.append(size))
    seeded.clear()
    return alcove_kms


seeded: list[int] = []


def flags(kms: LocalKms) -> list[str]:
    environment = kms.environment
    return [
        "--region", kms.region, "--proxy-port", "8000", "--aws-access-key-id", environment["AWS_ACCESS_KEY_ID"],
        "--aws-secret-access-key", environment["AWS_SECRET_ACCESS_KEY"], "--aws-session-token", "",
    ]  # fmt: skip


def test_genkey_and_decrypt(run: Run, enclave: LocalKms, alcove_nsm: SimulatedNSM) -> None:
    """AWS's two lines and one line, which samples split; long, short and environment forms; entropy first."""
    where = {"AWS_ENDPOINT_URL_KMS": enclave.url}
    key = enclave.create_key({"PCR0": alcove_nsm.pcr(0)})
    status, out, errors = run("genkey", *flags(enclave), "--key-id", key, "--key-spec", "AES-256", **where)
    assert (status, errors, seeded) == (0, "", [1024])
    lines = [line.split(": ") for line in out.splitlines()]
    assert [name for name, _ in lines] == ["CIPHERTEXT", "PLAINTEXT"]
    assert len(base64.b64decode(lines[1][1])) == 32
    status, out, errors = run("decrypt", *flags(enclave), "--ciphertext", lines[0][1], **where)
    assert (status, out, errors) == (0, f"PLAINTEXT: {lines[1][1]}\n", "")
    own = {name: value for name, value in enclave.environment.items() if name.startswith("AWS_")}
    status, out, _ = run("decrypt", "-c", lines[0][1], "-K", key, "-a", "SYMMETRIC_DEFAULT", **own)
    assert (status, out) == (0, f"PLAINTEXT: {lines[1][1]}\n")
    status, out, _ = run("genrandom", "--length=100", **own)
    assert (status, len(base64.b64decode(out.removeprefix("PLAINTEXT: ")))) == (0, 100)


def test_failures_are_255_with_aws_sentence(run: Run, enclave: LocalKms, alcove_nsm: SimulatedNSM) -> None:
    """Nothing on standard output; on standard error AWS's sentence, then what KMS said."""
    where = {"AWS_ENDPOINT_URL_KMS": enclave.url}
    key = enclave.create_key({"PCR0": bytes([1]) * 48})
    status, out, errors = run("genkey", *flags(enclave), "-K", key, "-p", "AES-128", **where)
    assert (status, out, errors.splitlines()[0]) == (255, "", "Could not generate data key")
    assert "AccessDeniedException" in errors
    status, out, errors = run("decrypt", *flags(enclave), "-c", "AAAA", **where)
    assert (status, out, errors.splitlines()[0]) == (255, "", "Could not decrypt ciphertext")
    status, out, errors = run("decrypt", *flags(enclave), "-c", "*", **where)
    assert (status, out, errors) == (255, "", "Ciphertext not a base64 string\n")
    status, out, errors = run("genrandom", *GIVEN, "-l", "8", **where)
    assert (status, out, errors.splitlines()[0]) == (255, "", "Could not generate random bytes")
    assert "UnrecognizedClientException" in errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "usage:"),
        (["decrypt", "--help"], "usage:"),
        (["genkey", "-h"], "usage:"),
        (["nothing"], "--aws-access-key-id must be set"),
        (["nothing", *GIVEN], "unknown command: nothing"),
        (["decrypt", "-k", "k", "-s", "s"], "--aws-session-token must be set"),
        (["decrypt", "-k", "k", "-t", "t"], "--aws-secret-access-key must be set"),
        (["decrypt", *GIVEN], "--ciphertext must be set"),
        (["decrypt", *GIVEN, "--nonsense", "x"], "Unknown option: nonsense"),
        (["decrypt", *GIVEN, "--length", "3", "-c", "AAAA"], "Unknown option: length"),
        (["genkey", *GIVEN, "-p", "AES-256"], "--key-id must be set"),
        (["genkey", *GIVEN, "-K", "k"], "--key-spec must be set"),
        (["genkey", *GIVEN, "-K", "k", "-p", "AES-512"], "--key-spec must be AES-256 or AES-128"),
        (["genrandom", *GIVEN], "--length must be greater than 0"),
        (["genrandom", *GIVEN, "--length", "1025", "--key-id", "ignored"], "--length must be smaller or equal to 1024"),
    ],
)
def test_bad_use_is_1_with_the_usage_on_stderr(run: Run, words: list[str], expected: str) -> None:
    """As in AWS's program: nothing on standard output."""
    status, out, errors = run(*words)
    assert (status, out) == (1, "")
    assert errors.startswith(expected)
    assert "usage: kmstool_enclave_cli" in errors


def test_outside_of_an_enclave_it_fails(run: Run) -> None:
    """Without a device there is no entropy, no document and no silent fall-back."""
    status, out, errors = run("genrandom", *GIVEN, "-l", "8")
    assert (status, out) == (255, "")
    assert "not in an enclave" in errors


def test_a_port_that_cannot_be_is_refused(run: Run, enclave: LocalKms) -> None:
    """Atoi makes 0 of it."""
    status, out, errors = run("genrandom", *GIVEN, "-l", "8", "--proxy-port", "x")
    assert (status, out) == (1, "")
    assert errors.startswith("--proxy-port must be greater than 0")


def test_a_plain_endpoint_is_refused(run: Run, enclave: LocalKms) -> None:
    """TLS ends in the enclave."""
    status, _, errors = run("genrandom", *GIVEN, "-l", "8", AWS_ENDPOINT_URL_KMS="http://localhost")
    assert status == 1
    assert "https://" in errors
