"""A server in a process of its own, and clients that write without a pause and remember what was acknowledged."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from tests.unit.kms.server_harness import client

from alcove.kms.users import NewUser

PROGRAM = """
import sys
from pathlib import Path
from alcove.kms.server import ServeConfig, serve
store, directory, workers = sys.argv[1:]
d = Path(directory)
config = ServeConfig(store, d / "root.key", d / "audit.jsonl", (), port=0, workers=int(workers))
serve(config, ready=lambda url: print(url, flush=True))
"""


@dataclass(slots=True)
class Server:
    """A server that can be killed with all its processes."""

    process: subprocess.Popen[str]
    url: str

    def kill(self) -> None:
        """SIGKILL for all of it at the same moment."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def workers(self) -> set[int]:
        """The processes that serve."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return {int(word) for word in children.read_text().split()}


@contextlib.contextmanager
def serving(store: str, directory: Path, workers: int) -> Iterator[Server]:
    """A server that runs until the block ends, in a process group of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", PROGRAM, store, str(directory), str(workers)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), url
            yield Server(process, url)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@dataclass(slots=True)
class Storm:
    """Clients in threads: each makes a key, encrypts under it, and changes it.

    Attributes:
        acknowledged: Key id → the last acknowledged description, and a blob of it.
        refused: Answers that were errors.
    """

    url: str
    user: NewUser
    acknowledged: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _written: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)

    @contextlib.contextmanager
    def raging(self, threads: int = 4) -> Iterator[None]:
        """Writes until the block ends."""
        running = [threading.Thread(target=self._write) for _ in range(threads)]
        for thread in running:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in running:
                thread.join()

    def wait(self, writes: int) -> None:
        """Until so many more writes were acknowledged."""
        for _ in range(writes):
            self._written.get(timeout=120)

    def _write(self) -> None:
        kms = client(self.url, self.user)
        while not self._stop.is_set():
            try:
                self._once(kms)
            except ClientError as error:
                self.refused.append(str(error))
            except BotoCoreError:  # no answer: nothing was promised
                self._stop.wait(0.01)

    def _once(self, kms: Any) -> None:
        key_id = kms.create_key()["KeyMetadata"]["KeyId"]
        sealed = kms.encrypt(KeyId=key_id, Plaintext=key_id.encode())["CiphertextBlob"]
        self.acknowledged[key_id] = ("", sealed)
        self._written.put(None)
        kms.update_key_description(KeyId=key_id, Description="changed")
        self.acknowledged[key_id] = ("changed", sealed)
        self._written.put(None)
