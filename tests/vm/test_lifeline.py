"""What a parent gives its enclaves and hears of them: credentials, health, the log, and an end in order.

Two enclaves of one image, outside debug mode; one of them is chosen to get credentials.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from benchmarks.net_parent import BIN, service

APP = r'''
import json, os, signal, socket, sys, time, urllib.request

def goodbye(*_):
    print("app: goodbye", flush=True)
    sys.exit(7)

def credentials():
    """As every SDK of AWS's asks."""
    with urllib.request.urlopen(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"], timeout=60) as answer:
        return json.load(answer)

def answer(word):
    if word == "well":
        open("/tmp/well", "w").close()
    elif word == "ill":
        os.unlink("/tmp/well")
    elif word == "credentials":
        try:
            return credentials()
        except OSError as error:
            return {"error": str(error)}
    return {}

signal.signal(signal.SIGTERM, goodbye)
with socket.socket(socket.AF_VSOCK) as listener:
    listener.bind((socket.VMADDR_CID_ANY, 5000))
    listener.listen()
    print("app: ready", flush=True)
    while True:
        stream, _ = listener.accept()
        with stream, stream.makefile("rb") as lines:
            word = lines.readline().decode().strip()
            print("app: heard", word, flush=True)
            stream.sendall(json.dumps(answer(word)).encode() + b"\n")
'''
HEALTH = "/usr/bin/busybox test -e /tmp/well"
RUN = ["/usr/bin/alcove-enclave", "run", "--log", "--health", HEALTH, "--health-interval", "0.5", "--credentials", "--"]
DOCKERFILE = f"""FROM scratch
ADD rootfs.tar /
COPY app.py /app.py
CMD {json.dumps([*RUN, "/usr/bin/python3", "-I", "/app.py"])}
"""
# What a company's own tool gives: a key that is about to end, another one at each call.
SOURCE = r"""
import datetime as dt, json, os, sys
path = sys.argv[1]
number = len(open(path).read()) if os.path.exists(path) else 0
open(path, "a").write("x")
ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=20)
print(json.dumps({"Version": 1, "AccessKeyId": f"ASIA{number:012}", "SecretAccessKey": "secret",
                  "SessionToken": "token", "Expiration": ends.isoformat()}))
"""
SECONDS = 180


@dataclass
class World:
    """Two running enclaves: `chosen` and `other`."""

    cli: Any
    pcr0: str
    cids: dict[str, int]
    ids: dict[str, str]

    def ask(self, name: str, word: str) -> dict[str, Any]:
        """What the application answers, once it is up."""
        done = subprocess.run(
            self.cli.command("alcove", "connect", self.cids[name], 5000, "--wait", SECONDS),
            input=f"{word}\n", env=self.cli.environment, capture_output=True, text=True, check=False,
            timeout=2 * SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def health(self, name: str, wanted: str) -> int:
        """Waits for a state of health; the status of `alcove health` then."""
        deadline = time.monotonic() + SECONDS
        while True:
            done = self.cli("alcove", "health", name)
            if done.stdout and json.loads(done.stdout)["health"] == wanted:
                return int(done.returncode)
            assert time.monotonic() < deadline, done
            time.sleep(0.5)


@pytest.fixture(scope="module")
def world(cli: Any) -> Iterator[World]:
    """The enclaves."""
    context = cli.directory / "lifeline"
    context.mkdir()
    made = cli("alcove", "rootfs", context / "rootfs.tar", "--with", "python", "--with", "shell")
    assert made.returncode == 0, made.stderr
    (context / "app.py").write_text(APP)
    (context / "Dockerfile").write_text(DOCKERFILE)
    target = cli.directory / "lifeline.eif"
    given = ("--docker-dir", context, "--docker-uri", "lifeline:test", "--output-file", target)
    built = cli.json("alcove", "build-enclave", *given)
    started = {name: cli.run_enclave(target, "--enclave-name", name, memory=512) for name in ("chosen", "other")}
    yield World(
        cli,
        built["Measurements"]["PCR0"],
        {name: each["EnclaveCID"] for name, each in started.items()},
        {name: each["EnclaveID"] for name, each in started.items()},
    )
    for each in started.values():  # a test ends some of them
        cli("nitro-cli", "terminate-enclave", "--enclave-id", each["EnclaveID"])


@contextlib.contextmanager
def kms(directory: Path, environment: dict[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    """A KMS of ours with a user and a role; what leads the user to its STS, and the role's ARN."""
    own = environment | {"ALCOVE_STATE": str(directory / "state"), "ALCOVE_CONFIG": str(directory / "config")}

    def add(kind: str, *arguments: str) -> dict[str, str]:
        command = [str(BIN / "alcove"), "kms", kind, "add", *arguments, "--json"]
        done = subprocess.run(command, env=own, capture_output=True, check=True, timeout=120)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    user, role = add("user", "parent"), add("role", "app", "--trust", "parent")
    with service(own, "alcove", "kms", "serve", "--listen", "127.0.0.1:0", ready="http://") as (_, line):
        url = "http://" + line.partition("http://")[2].split()[0].rstrip(",;")
        keys = {"AWS_ACCESS_KEY_ID": user["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": user["SecretAccessKey"]}
        yield environment | keys | {"AWS_ENDPOINT_URL_STS": url}, role["RoleArn"]


def test_a_user_of_our_kms_lends_a_role_to_the_chosen_enclave(world: World, tmp_path: Path) -> None:
    """The enclave's SDK finds credentials that STS knows; an enclave of the same image that was not chosen has none."""
    with (
        kms(tmp_path, world.cli.environment) as (environment, role),
        service(
            environment, "alcove", "credentials", "--enclave", "chosen", "--pcr0", world.pcr0, "--role-arn", role,
            "--duration", 900, ready="credentials on port 9040",
        ),
    ):  # fmt: skip
        given = world.ask("chosen", "credentials")
        assert given["AccessKeyId"] != environment["AWS_ACCESS_KEY_ID"]
        session = botocore.session.Session()
        session.set_credentials(given["AccessKeyId"], given["SecretAccessKey"], given["Token"])
        sts = session.create_client("sts", "us-east-1", endpoint_url=environment["AWS_ENDPOINT_URL_STS"])
        assert ":assumed-role/app/" in sts.get_caller_identity()["Arn"]
        assert "403" in world.ask("other", "credentials")["error"]


def test_credentials_are_renewed(world: World, tmp_path: Path) -> None:
    """A key of a few seconds, from a profile's own program: the enclave gets the next before it has ended."""
    source, config = tmp_path / "source.py", tmp_path / "config"
    source.write_text(SOURCE)
    program = f"/usr/bin/env python3 {source} {tmp_path / 'calls'}"
    config.write_text(f"[profile tool]\ncredential_process = {program}\n")
    environment = world.cli.environment | {"AWS_CONFIG_FILE": str(config)}
    command = ("alcove", "credentials", "--enclave", "chosen", "--profile", "tool")
    with service(environment, *command, ready="credentials on port 9040"):
        first = world.ask("chosen", "credentials")["AccessKeyId"]
        deadline = time.monotonic() + SECONDS
        while (then := world.ask("chosen", "credentials"))["AccessKeyId"] == first:
            assert time.monotonic() < deadline
            time.sleep(1)
        assert then["AccessKeyId"] > first


def test_credentials_are_bound_to_an_image(world: World, tmp_path: Path) -> None:
    """An enclave of the chosen name that runs another image than the one that was named gets none."""
    source, config = tmp_path / "source.py", tmp_path / "config"
    source.write_text(SOURCE)
    config.write_text(f"[profile tool]\ncredential_process = /usr/bin/env python3 {source} {tmp_path / 'calls'}\n")
    environment = world.cli.environment | {"AWS_CONFIG_FILE": str(config)}
    command = ("alcove", "credentials", "--enclave", "chosen", "--profile", "tool", "--pcr0", "ab" * 48)
    with service(environment, *command, ready="credentials on port 9040"):
        assert "403" in world.ask("chosen", "credentials")["error"]


def test_health_is_that_of_the_image_s_own_check(world: World) -> None:
    """Well, then ill, then well again: `alcove health` says so, and its status does."""
    world.ask("chosen", "well")
    assert world.health("chosen", "healthy") == 0
    world.ask("chosen", "ill")
    assert world.health("chosen", "unhealthy") == 1
    world.ask("chosen", "well")
    assert world.health("chosen", "healthy") == 0


def test_an_enclave_is_asked_to_end_and_its_last_words_are_heard(world: World) -> None:
    """SIGTERM within the grace: who follows the log hears the application's goodbye, and its status is told."""
    world.ask("other", "hello")
    shown = world.cli("alcove", "logs", "other")
    assert "app: ready\n" in shown.stdout
    assert "app: heard hello\n" in shown.stdout
    command = world.cli.command("alcove", "logs", "--follow", "other")
    with subprocess.Popen(command, env=world.cli.environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "app: ready\n"
        done = world.cli.json(
            "nitro-cli", "terminate-enclave", "--enclave-id", world.ids["other"], "--grace", str(SECONDS)
        )
        assert done["Terminated"] is True
        assert following.stdout.read().endswith("app: goodbye\n")
    entries = world.cli.json("alcove", "describe-enclaves", "--all")
    entry = next(entry for entry in entries if entry["EnclaveID"] == world.ids["other"])
    assert (entry["Cause"], entry["ExitStatus"]) == ("exited", 7), entry


def test_without_grace_an_enclave_ends_at_once(world: World) -> None:
    """`--grace 0` asks nobody."""
    done = world.cli.json("nitro-cli", "terminate-enclave", "--enclave-id", world.ids["chosen"], "--grace", "0")
    assert done["Terminated"] is True
    entries = world.cli.json("alcove", "describe-enclaves", "--all")
    entry = next(entry for entry in entries if entry["EnclaveID"] == world.ids["chosen"])
    assert entry["ExitStatus"] is None, entry
