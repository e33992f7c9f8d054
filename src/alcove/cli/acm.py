"""`alcove acm`: TLS keys in an enclave for a web server on this machine."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from alcove.cli import output
from alcove.cli.parsers import Commands, command, command_group
from alcove.enclave import runtime
from alcove.enclave.paths import Paths
from alcove.errors import InputError, MachineError, UsageError

_USES_SECONDS: Final = 20.0  # for an enclave that signs to count
CONFIG: Final = "/etc/nitro_enclaves/acm.yaml"  # AWS's place


def add_commands(commands: Commands) -> None:
    """Add `alcove acm` to the program."""
    inner = command_group(commands, "acm", "TLS keys in an enclave for a web server on this machine")
    parser = command(
        inner,
        "agent",
        agent,
        "run the enclave, provision it, renew, and tell the web server",
        "alcove acm agent --config acm.yaml",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, default=Path(CONFIG), help=f"default: {CONFIG}")
    parser = command(inner, "status", status, "say what the agent serves; status 1 when something is not served")
    parser.add_argument("--run-directory", metavar="DIR", type=Path, help="the agent's options.run_directory")
    parser.add_argument("--json", action="store_true", help="for programs")


def agent(arguments: argparse.Namespace) -> None:
    """Run the agent until SIGTERM or SIGINT."""
    from alcove.apps.acm.agent import Agent, Place  # noqa: PLC0415 - only this command needs it
    from alcove.apps.acm.log import to_stderr  # noqa: PLC0415
    from alcove.apps.acm.settings import parse  # noqa: PLC0415
    from alcove.proxy.service import take_descriptors  # noqa: PLC0415

    paths = Paths.from_environment()
    try:
        text = arguments.config.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{arguments.config} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise UsageError(f"{arguments.config} cannot be read: it is not UTF-8") from None
    settings = parse(text, run_directory=_run_directory(paths), state_directory=paths.state / "acm")
    for name in settings.strange:
        to_stderr(f"acm.yaml: {name} means nothing here")
    image = settings.enclave.image_path
    if not image.is_file():
        raise UsageError(
            f"acm.yaml: enclave.image_path: there is no image {image}", hint="`alcove build-enclave` makes one"
        )

    runtime.prepare(paths)
    take_descriptors()  # two for each process of the web server

    def verify(enclave: Any, document: bytes, request_pem: str) -> None:
        _verify(paths, enclave.id, document, request_pem)

    place = Place(paths.run, verify, _credentials)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Agent(settings, place, to_stderr).serve(stop)

    asyncio.run(run())


def status(arguments: argparse.Namespace) -> int:
    """What the agent wrote down, and what the enclave counts."""
    from alcove.apps.acm.agent import STATUS  # noqa: PLC0415 - only this command needs it

    file = (arguments.run_directory or _run_directory(Paths.from_environment())) / STATUS
    found = _read(file)
    found["running"] = _alive(found["pid"])
    uses = _uses(found) if found["running"] else {}
    for token in found["tokens"]:
        token["served"] = token["served"] and found["running"]
        token["uses"] = uses.get(token["label"])
    if arguments.json:
        output.result(found)
    else:
        _show(found)
    return 0 if found["running"] and all(token["served"] and not token["trouble"] for token in found["tokens"]) else 1


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no agent has written {file}", hint="is `alcove acm agent` running?") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not _is_status(found):
        raise InputError(f"{file} is not what an agent writes")
    return found


def _is_status(found: dict[str, Any]) -> bool:
    pid, enclave, tokens = found.get("pid"), found.get("enclave"), found.get("tokens")
    there = isinstance(enclave, dict) and "id" in enclave and isinstance(enclave.get("vsock"), str)
    members = {"label", "source", "served", "expires", "trouble"}
    return (
        isinstance(pid, int)
        and 0 < pid < 1 << 31
        and isinstance(found.get("rpc_port"), int)
        and (there or enclave is None)
        and isinstance(tokens, list)
        and all(isinstance(token, dict) and members <= token.keys() for token in tokens)
    )


def _show(found: dict[str, Any]) -> None:
    enclave = found["enclave"]
    where = f"enclave {enclave['id']}" if enclave else "no enclave"
    output.text(f"agent {found['pid']} {'runs' if found['running'] else 'has ended'}, {where}")
    for token in found["tokens"]:
        state = "served" if token["served"] else "NOT served"
        until = f", certificate until {token['expires']}" if token["expires"] else ""
        uses = "" if token["uses"] is None else f", used {token['uses']} times"
        output.text(_line(f"{token['label']:<32} {state:<10} from {token['source']}{until}{uses}"))
        if token["trouble"]:
            output.text(_line(f"    {token['trouble']}"))


def _line(text: str) -> str:
    """One line for a terminal: what troubles a token is told in words of KMS's and of the enclave's."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _uses(found: dict[str, Any]) -> dict[str, int]:
    from alcove.apps.acm.parent import ask  # noqa: PLC0415 - only this command needs it
    from alcove.errors import AlcoveError  # noqa: PLC0415

    if not found["enclave"]:
        return {}
    try:
        counted = ask(Path(found["enclave"]["vsock"]), found["rpc_port"], "CountUses", _USES_SECONDS)["Uses"]
        return {label: uses for label, uses in counted.items() if isinstance(uses, int)}
    except (AlcoveError, LookupError, TypeError, AttributeError):  # whatever an enclave says
        return {}


def _run_directory(paths: Paths) -> Path:
    return paths.run / "acm"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _verify(paths: Paths, enclave_id: str, document: bytes, request_pem: str) -> None:
    """The document is genuine, of the running image, and speaks for the request.

    Raises:
        AttestationError: It is not.
    """
    from cryptography import x509  # noqa: PLC0415 - only the agent needs these
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    from alcove.attestation import PCR, AttestationError, Root, verify  # noqa: PLC0415
    from alcove.enclave import lifecycle  # noqa: PLC0415

    entries, _ = lifecycle.describe_enclaves(paths, metadata=False)
    measured = [entry["Measurements"]["PCR0"] for entry in entries if entry["EnclaveID"] == enclave_id]
    if not measured:
        raise UsageError(f"enclave {enclave_id} has ended")
    digest = bytes.fromhex(measured[0])
    root = Root.from_pem((paths.authority / "root.pem").read_bytes())
    verified = verify(document, roots=[root], policy=PCR(0, digest), at=datetime.now(UTC))
    der = x509.load_pem_x509_csr(request_pem.encode()).public_bytes(Encoding.DER)
    if verified.document.user_data != hashlib.sha256(der).digest():
        raise AttestationError("the document speaks for another request", step=13)


def _credentials() -> tuple[str, str, str | None]:
    """Where AWS's SDKs find them: environment, files, instance."""
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - only the agent needs it
    from botocore.session import Session  # noqa: PLC0415

    try:
        found = Session().get_credentials()
        frozen = None if found is None else found.get_frozen_credentials()
    except BotoCoreError as error:
        raise MachineError(f"no credentials for KMS: {error}") from None
    if frozen is None:
        raise UsageError("no credentials for KMS", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    return frozen.access_key, frozen.secret_key, frozen.token
