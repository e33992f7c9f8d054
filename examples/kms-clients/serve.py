"""Runs the three programs when the parent asks: one JSON line on vsock port 5000, one back.

    {"run": "python" | "node" | "shell" | "document", "key": ARN, "environment": {"AWS_…": …}}
        → {"status", "stdout", "stderr"}

The parent gives credentials, endpoint and key, and chooses nothing else: which program is run, with which CA, is
measured. kmstool's protocol is served beside it on port 3000, and documents on the enclave's loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from alcove.sdk import clock, entropy, vsock
from alcove.sdk.nsm import Nsm

PORT = 5000
MAX_LINE = 65536
CALLER_SECONDS = 30.0
CA = "/app/ca.pem"
# boto3 goes through the egress proxy; kms-proxy and kmstool reach KMS through the parent's vsock-proxy.
PROGRAMS = {
    "python": ["/usr/bin/python3", "-I", "/app/app.py"],
    "node": ["/usr/bin/alcove-enclave", "kms-proxy", "--ca-file", CA, "--", "/usr/bin/node", "/app/app.js"],
    "shell": ["/usr/bin/sh", "/app/kmstool.sh"],
    "document": ["/usr/bin/sh", "/app/document.sh"],
}
BESIDE = (["kmstool", "--ca-file", CA], ["attestation-server"])
KMS_NAME = "kms.alcove.test"  # where kmstool finds KMS; AWS's name for the Region without it
ALLOWED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
           "AWS_ENDPOINT_URL_KMS")  # fmt: skip


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one of the programs to its end."""
    given = {name: str(value) for name, value in request["environment"].items() if name in ALLOWED}
    command = [*PROGRAMS[request["run"]], str(request["key"])]
    if request["run"] == "node":  # AWS_ENDPOINT_URL_KMS is the program's, below the proxy
        endpoint = given.pop("AWS_ENDPOINT_URL_KMS").removeprefix("https://")
        command[2:2] = ["--endpoint", endpoint]
    environment = {**os.environ, "PATH": "/usr/bin", "AWS_CA_BUNDLE": CA, **given}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def answer(line: bytes) -> dict[str, Any]:
    """The answer to one line. The caller is not trusted: whatever it sends, the program goes on."""
    try:
        return run(json.loads(line))
    except Exception as error:  # noqa: BLE001 - the boundary: the parent is told, and may ask again
        return {"status": -1, "stdout": "", "stderr": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Seed the random generator, set the clock, then serve one caller after the other."""
    nsm = Nsm()
    entropy.seed(nsm)
    clock.correct(nsm)
    for arguments in BESIDE:
        subprocess.Popen(["/usr/bin/alcove-enclave", *arguments], env={**os.environ, "ENDPOINT": KMS_NAME})
    with vsock.listen(PORT) as listener:
        print(f"waiting on vsock port {PORT}", file=sys.stderr, flush=True)
        while True:
            stream, _ = listener.accept()
            with stream:
                stream.settimeout(CALLER_SECONDS)
                try:
                    line = stream.makefile("rb").readline(MAX_LINE)
                    stream.sendall(json.dumps(answer(line)).encode() + b"\n")
                except OSError:
                    continue


if __name__ == "__main__":
    main()
