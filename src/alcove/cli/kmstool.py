"""The program ``kmstool_enclave_cli``, with AWS's options, output and exit statuses (sdk.md §5).

What is ours besides: credentials that are not on the command line, which every process of the enclave can read, come
from AWS_ACCESS_KEY_ID and its like; AWS_ENDPOINT_URL_KMS and AWS_CA_BUNDLE name another KMS than AWS's; and what KMS
said follows AWS's sentence on standard error.
"""

from __future__ import annotations

import base64
import binascii
import getopt
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from alcove.cli import output
from alcove.errors import AlcoveError
from alcove.sdk import entropy, nsm
from alcove.sdk.endpoint import PROXY_PORT, Credentials
from alcove.sdk.kms import AttestedKms
from alcove.sdk.recipient import KEY_SPECS

SEED_BYTES: Final = 1024
MAX_LENGTH: Final = 1024
FAILED: Final = 255
_COMMON: Final = {
    "region": "r",
    "proxy-port": "x",
    "aws-access-key-id": "k",
    "aws-secret-access-key": "s",
    "aws-session-token": "t",
}
_OPTIONS: Final = {
    "decrypt": _COMMON | {"ciphertext": "c", "key-id": "K", "encryption-algorithm": "a"},
    "genkey": _COMMON | {"key-id": "K", "key-spec": "p"},
    "genrandom": _COMMON | {"length": "l"},
}
_VARIABLES: Final = {
    "aws-access-key-id": "AWS_ACCESS_KEY_ID",
    "aws-secret-access-key": "AWS_SECRET_ACCESS_KEY",
    "aws-session-token": "AWS_SESSION_TOKEN",
}
_USAGE: Final = """\
usage: kmstool_enclave_cli {decrypt|genkey|genrandom} [options]

  all:        -r, --region REGION                  us-east-1 by default
              -x, --proxy-port PORT                vsock-proxy's port on the parent, 8000 by default
              -k, --aws-access-key-id ID           or AWS_ACCESS_KEY_ID
              -s, --aws-secret-access-key SECRET   or AWS_SECRET_ACCESS_KEY
              -t, --aws-session-token TOKEN        or AWS_SESSION_TOKEN; empty for long-term keys
              -h, --help
  decrypt:    -c, --ciphertext BASE64
              -K, --key-id KEY, -a, --encryption-algorithm ALGORITHM
  genkey:     -K, --key-id KEY, -p, --key-spec AES-256|AES-128
  genrandom:  -l, --length BYTES                   1 to 1024"""


class _UsageError(Exception):
    """Bad use: a sentence and status 1."""


class _FailedError(Exception):
    """AWS's sentence of a failure, and status 255."""


def main() -> NoReturn:
    """Run the command and exit with AWS's status."""
    try:
        lines = _run(sys.argv[1:], os.environ)
    except _UsageError as problem:
        output.say(f"{problem}\n{_USAGE}" if str(problem) else _USAGE)
        sys.exit(1)
    except (_FailedError, AlcoveError) as problem:
        if isinstance(problem, AlcoveError):
            output.error("kmstool_enclave_cli", problem)
        else:
            output.say(str(problem))
            if isinstance(problem.__cause__, AlcoveError):
                output.say(f"kmstool_enclave_cli: {problem.__cause__}")
        sys.exit(FAILED)
    for line in lines:
        output.text(line)
    sys.exit(0)


def _run(words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The lines of the result."""
    if not words:
        raise _UsageError("")
    command, options = words[0], _parse(words)
    credentials = _credentials(options, environment)
    commands = {"decrypt": _decrypt, "genkey": _genkey, "genrandom": _genrandom}
    if command not in commands:
        raise _UsageError(f"unknown command: {command}")
    members = _checked(command, options)
    module = nsm.default()
    entropy.seed(module, size=SEED_BYTES)
    return commands[command](_kms(options, credentials, environment), members)


def _parse(words: Sequence[str]) -> dict[str, str]:
    """The options by their long names; like getopt_long, in any order and shortened."""
    wanted = _OPTIONS.get(words[0])
    known = {name: short for options in _OPTIONS.values() for name, short in options.items()}
    letters = "".join(f"{short}:" for short in known.values())
    try:
        found, _ = getopt.gnu_getopt(list(words[1:]), f"h{letters}", ["help", *(f"{name}=" for name in known)])
    except getopt.GetoptError as error:
        raise _UsageError(f"Unknown option: {error.opt}" if "recognized" in error.msg else error.msg) from None
    long = {f"-{short}": name for name, short in known.items()}
    options = {long.get(option, option.removeprefix("--")): value for option, value in found}
    if "help" in options or "-h" in options:
        raise _UsageError("")
    strangers = options.keys() - (wanted or known).keys()
    if words[0] == "decrypt" and strangers:  # the two others ignore them, as AWS's do
        raise _UsageError(f"Unknown option: {min(strangers)}")
    return options


def _credentials(options: Mapping[str, str], environment: Mapping[str, str]) -> Credentials:
    """From the command line as a whole, or from the environment as a whole."""
    names = list(_VARIABLES)
    if options.keys().isdisjoint(names) and environment.get("AWS_ACCESS_KEY_ID"):
        values = {name: environment.get(variable, "") for name, variable in _VARIABLES.items()}
    else:
        values = {name: options[name] for name in names if name in options}
    for name in names:
        if name not in values or (name != "aws-session-token" and not values[name]):
            raise _UsageError(f"--{name} must be set")
    return Credentials(values[names[0]], values[names[1]], values[names[2]] or None)


def _checked(command: str, options: Mapping[str, str]) -> dict[str, Any]:
    """The members of the request."""
    if command == "genrandom":
        length = _atoi(options.get("length", "0"))
        if length < 1:
            raise _UsageError("--length must be greater than 0")
        if length > MAX_LENGTH:
            raise _UsageError(f"--length must be smaller or equal to {MAX_LENGTH}")
        return {"NumberOfBytes": length}
    needed = ("ciphertext",) if command == "decrypt" else ("key-id", "key-spec")
    for name in needed:
        if not options.get(name):
            raise _UsageError(f"--{name} must be set")
    if command == "genkey":
        spec = options["key-spec"].replace("-", "_")
        if spec not in KEY_SPECS:
            raise _UsageError("--key-spec must be AES-256 or AES-128")
        return {"KeyId": options["key-id"], "KeySpec": spec}
    optional = {"KeyId": options.get("key-id"), "EncryptionAlgorithm": options.get("encryption-algorithm")}
    return {"CiphertextBlob": options["ciphertext"]} | {name: value for name, value in optional.items() if value}


def _atoi(text: str) -> int:
    found = re.match(r"\s*[+-]?\d{1,9}", text)
    return int(found[0]) if found else 0


def _port(text: str | None) -> int:
    port = PROXY_PORT if text is None else _atoi(text)
    if port < 1:
        raise _UsageError("--proxy-port must be greater than 0")
    return port


def _kms(options: Mapping[str, str], credentials: Credentials, environment: Mapping[str, str]) -> AttestedKms:
    region = options.get("region", "us-east-1")
    url = environment.get("AWS_ENDPOINT_URL_KMS", "")
    if url and not url.startswith("https://"):
        raise _UsageError("AWS_ENDPOINT_URL_KMS must begin with https://: TLS ends in the enclave")
    return AttestedKms(
        region,
        credentials,
        urlsplit(url).netloc or None,
        proxy_port=_port(options.get("proxy-port")),
        ca_file=environment.get("AWS_CA_BUNDLE") or None,
    )


def _decrypt(kms: AttestedKms, members: dict[str, Any]) -> list[str]:
    try:
        base64.b64decode(members["CiphertextBlob"], validate=True)
    except (binascii.Error, ValueError):
        raise _FailedError("Ciphertext not a base64 string") from None
    return [_plaintext(_ask(kms, "Decrypt", members, "Could not decrypt ciphertext")[0])]


def _genkey(kms: AttestedKms, members: dict[str, Any]) -> list[str]:
    plaintext, answer = _ask(kms, "GenerateDataKey", members, "Could not generate data key")
    return [f"CIPHERTEXT: {answer.get('CiphertextBlob')}", _plaintext(plaintext)]


def _genrandom(kms: AttestedKms, members: dict[str, Any]) -> list[str]:
    return [_plaintext(_ask(kms, "GenerateRandom", members, "Could not generate random bytes")[0])]


def _ask(kms: AttestedKms, operation: str, members: dict[str, Any], sentence: str) -> tuple[bytes, Mapping[str, Any]]:
    size = KEY_SPECS.get(str(members.get("KeySpec")), members.get("NumberOfBytes"))
    try:
        return kms.call(operation, members, size)
    except AlcoveError as error:
        raise _FailedError(sentence) from error


def _plaintext(value: bytes) -> str:
    return f"PLAINTEXT: {base64.b64encode(value).decode('ascii')}"
