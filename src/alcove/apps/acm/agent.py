"""The parent's daemon: runs the enclave, provisions it, renews, and tells the web server (acm.md §3).

One round: start the enclave, put every token into it, tell the web server; then watch. When the enclave ends, new
handshakes fail at once, and the next round begins. A token in trouble is told and tried again; the others go on.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from alcove.apps.acm import kms_proxy, parent, sources, stanza, webserver, workers
from alcove.apps.acm.files import write_atomically
from alcove.apps.acm.log import Log
from alcove.apps.acm.parent import Launcher, NitroCli, RpcError, RunningEnclave
from alcove.apps.acm.relay import Relay
from alcove.apps.acm.rotation import Rotation
from alcove.apps.acm.settings import Settings, TokenSettings
from alcove.apps.acm.sources import LYING_READY, Birth, BornKeys, Material
from alcove.errors import AlcoveError, MachineError, UsageError

FIRST_PAUSE: Final = 1.0  # before an enclave that did not come to serve is started again; doubled each time
LONGEST_PAUSE: Final = 30.0
RETRY_SECONDS: Final = 10.0  # after trouble with a token or the web server
ALIVE_SECONDS: Final = 20.0  # for an enclave that kept clients waiting to answer the agent; then it is ended
POLL: Final = 0.1  # acm.md §2: between tries to reach a booting enclave
SOCKET: Final = "p11.sock"
STATUS: Final = "status.json"
LOCK: Final = "acm.lock"
PIN_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are, and what the agent cannot do by itself.

    Attributes:
        runtime: Alcove's runtime directory.
        verify: Checks that a document of the running enclave's image speaks for a request.
        credentials: Current ones for KMS: access key id, secret, session token.
        launcher: Starts and ends the enclave.
    """

    runtime: Path
    verify: Callable[[RunningEnclave, bytes, str], None]
    credentials: Callable[[], tuple[str, str, str | None]]
    launcher: Launcher = field(default_factory=NitroCli)


@dataclass(slots=True)
class _Held:
    """A token as the agent knows it.

    Attributes:
        served: What is in the enclave now; None for nothing.
        written: What the web server's files say of it; None while they do not.
        rotation: Under which id and label the key is there.
        refreshed: When its time in the enclave began, monotonic.
    """

    settings: TokenSettings
    pin: str = field(repr=False)
    served: Material | None = None
    written: Material | None = None
    rotation: Rotation = field(default_factory=Rotation)
    refreshed: float = 0.0
    trouble: str | None = None
    uri: str = ""

    def access(self) -> dict[str, str]:
        """What a request about it needs."""
        return {"label": self.settings.label, "pin": self.pin}


class Agent:
    """The daemon.

    Args:
        settings: From acm.yaml.
        place: See `Place`.
        log: One line an event.
    """

    def __init__(self, settings: Settings, place: Place, log: Log) -> None:
        self._settings, self._place, self._log = settings, place, log
        self._run = settings.options.run_directory
        self._held = [_Held(token, token.pin or secrets.token_hex(PIN_BYTES)) for token in settings.tokens]
        self._born = BornKeys(settings.options.state_directory, self._create, self._verify)
        self._enclave: RunningEnclave | None = None
        self._starts = 0
        self._untold = False  # something changed that the web server has not taken up
        self._session_lives = False  # the web server's session is with the enclave that runs
        self._shut_out: str | None = None
        self._since = time.time()
        self._pause = 0.0  # seconds before the enclave is started again
        self._down_at: float | None = None  # since when nobody is served, monotonic; None at the first start

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until told to stop; the enclave ends with the agent.

        Raises:
            AlcoveError: Another agent runs, or the socket for p11-kit or the port to KMS cannot be had.
        """
        self._run.mkdir(parents=True, exist_ok=True)
        options = self._settings.options
        relay = Relay(self._run / SOCKET, self._settings.enclave.p11kit_port, options.socket_group, self._log)
        with self._alone():
            async with relay.serving(), self._way_to_kms():
                await self._rounds(relay, stop)
        self._write_status()

    async def _rounds(self, relay: Relay, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._round(relay, stop)
            except AlcoveError as error:
                if not stop.is_set():  # Ctrl-C ends nitro-cli too
                    self._log(_said(error))
            finally:
                self._down_at = self._down_at or time.monotonic()
                relay.point(None)
                await self._end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._pause)
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The only agent of this runtime directory: each ends the enclave that another one runs."""
        runtime = self._place.runtime
        runtime.mkdir(parents=True, exist_ok=True)
        lock = os.open(runtime / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise MachineError(
                f"another agent runs its enclave in {runtime}", hint="one agent serves all tokens of one acm.yaml"
            ) from None
        finally:
            os.close(lock)

    def _way_to_kms(self) -> contextlib.AbstractAsyncContextManager[None]:
        if all(token.source in sources.IN_CLEAR for token in self._settings.tokens):
            return contextlib.nullcontext()
        ports = self._place.runtime / "vsock"
        ports.mkdir(parents=True, exist_ok=True)
        return kms_proxy.serving(ports, self._settings.kms, self._log)

    async def _round(self, relay: Relay, stop: asyncio.Event) -> None:
        """One enclave's life."""
        settings = self._settings.enclave
        self._enclave = enclave = await asyncio.to_thread(self._place.launcher.start, settings, self._place.runtime)
        self._starts += 1
        self._log(f"enclave {enclave.id} has started")
        over = asyncio.create_task(enclave.ended())
        stopped = asyncio.create_task(stop.wait())
        work = asyncio.create_task(self._work(enclave, relay))
        try:
            await asyncio.wait({over, stopped, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif over.done():
                self._log(f"enclave {enclave.id} has ended: it is started again")
        finally:
            for task in (over, stopped, work):
                task.cancel()
            await asyncio.gather(over, stopped, work, return_exceptions=True)

    async def _work(self, enclave: RunningEnclave, relay: Relay) -> None:
        await self._booted(enclave)
        await self._sync()
        relay.point(enclave.vsock)
        self._pause = 0.0
        self._untold, self._session_lives = True, False  # its sessions, if any, are with an enclave that has ended
        while True:
            if self._untold:
                await asyncio.to_thread(self._tell_server)
            await asyncio.to_thread(self._look_at_workers)
            troubled = self._untold or any(held.trouble for held in self._held)
            pause = self._settings.options.sync_interval_secs
            try:
                await asyncio.wait_for(relay.stalled.wait(), min(pause, RETRY_SECONDS) if troubled else pause)
            except TimeoutError:
                self._untold |= await self._sync()
            else:
                await self._after_stall(relay)

    async def _after_stall(self, relay: Relay) -> None:
        """The enclave kept clients waiting: it lives, and they get new sessions, or it is ended and started again."""
        relay.stalled.clear()
        try:
            await asyncio.to_thread(self._ask, "DescribeDevice", ALIVE_SECONDS)
        except MachineError as error:
            raise MachineError(f"{error.message}: it is started again") from None
        self._untold, self._session_lives = True, False

    async def _booted(self, enclave: RunningEnclave) -> None:
        deadline = time.monotonic() + self._settings.enclave.boot_timeout_ms / 1000
        while True:
            try:
                await asyncio.to_thread(self._ask, "DescribeDevice")
            except MachineError:
                if time.monotonic() > deadline:
                    raise MachineError(
                        f"enclave {enclave.id} does not answer",
                        hint="is the image Alcove's? boot_timeout_ms may be too short",
                    ) from None
                await asyncio.sleep(POLL)
            else:
                return

    async def _end(self) -> None:
        enclave, self._enclave = self._enclave, None
        if enclave is not None:
            await asyncio.to_thread(self._place.launcher.end, enclave)
        for held in self._held:
            held.served = held.written = None
        self._write_status()

    async def _sync(self) -> bool:
        """Bring every token up to date; whether the web server must be told."""
        changed = False
        for held in self._held:
            try:
                changed |= await asyncio.to_thread(self._sync_one, held)
                held.trouble = None
            except Exception as error:  # noqa: BLE001 - the boundary: the other tokens go on
                said = str(error) if isinstance(error, AlcoveError | OSError) else type(error).__name__
                if said != held.trouble:
                    self._log(f"token {held.settings.label}: {said}")
                held.trouble = said
        self._write_status()
        return changed

    def _sync_one(self, held: _Held) -> bool:
        """Bring a token up to date; whether the web server must be told."""
        material = self._material(held.settings)
        if material != held.served:
            self._serve(held, material)
        elif time.monotonic() - held.refreshed >= held.settings.refresh_interval_secs:
            self._refresh(held)
        if held.served == held.written:
            return False
        self._write_files(held)
        self._log(f"token {held.settings.label}: is served")
        return True

    def _serve(self, held: _Held, material: Material) -> None:
        """Put what a source holds into the enclave."""
        try:
            self._put(held, material)
        except RpcError:
            if held.settings.source in LYING_READY or held.served is not None:
                raise
            # A key that was kept, and that this KMS or this image does not open: another one takes its place.
            material = self._material(held.settings, anew=True)
            self._put(held, material)
        held.served, held.refreshed = material, time.monotonic()

    def _put(self, held: _Held, material: Material) -> None:
        if held.served is None:
            self._ask({"AddToken": {"token": self._order(held, held.rotation.alone(material))}})
            return
        rotation = held.rotation.after(held.served, material)
        update = held.access() | {"token": self._order(held, rotation.beside(held.served, material))}
        try:
            self._ask({"UpdateToken": update})
        except RpcError:  # perhaps because of the key before: KMS may take it back at any time
            self._ask({"UpdateToken": held.access() | {"token": self._order(held, rotation.alone(material))}})
        held.rotation = rotation

    def _refresh(self, held: _Held) -> None:
        """Prove to KMS again that the image may have the key; one that KMS refuses is taken out."""
        if "pem" in (held.served or Material((), "")).keys[0]:
            return
        try:
            self._ask({"RefreshToken": held.access() | {"envelope_key": self._envelope()}})
        except RpcError as error:
            if error.name == "KmsDecryptFailed":
                self._ask({"RemoveToken": held.access()})
                held.served = held.written = None
            raise
        held.refreshed = time.monotonic()

    def _material(self, token: TokenSettings, *, anew: bool = False) -> Material:
        now = datetime.now(UTC)
        if token.source in LYING_READY:
            return sources.fetch(token)
        if not token.domains:
            raise UsageError(f"the source {token.source} needs domains")
        return self._born.material(token, now, anew=anew)

    def _create(self, token: TokenSettings) -> Birth:
        if self._settings.kms.key_id is None:
            raise UsageError("a key is born under a KMS key: kms.key_id is missing")
        request = {"label": token.label, "domains": list(token.domains or ()), "envelope_key": self._envelope()}
        created = self._ask({"CreateKey": request | {"key_type": token.members.get("key_type", "ec-p256")}})
        found = created["KeyCreated"]
        return Birth(found["sealed_key"], found["csr_pem"], base64.b64decode(found["document_b64"]))

    def _verify(self, document: bytes, request_pem: str) -> None:
        self._place.verify(self._running(), document, request_pem)

    def _order(self, held: _Held, keys: tuple[dict[str, Any], ...]) -> dict[str, Any]:
        encrypted = any("pem" not in key for key in keys)
        return held.access() | {
            "envelope_key": self._envelope() if encrypted else None,
            "keys": list(keys),
            "mechanisms": held.settings.mechanisms,
            "rate": held.settings.rate,
            "domains": None if held.settings.domains is None else list(held.settings.domains),
        }

    def _envelope(self) -> dict[str, Any]:
        access, secret, session = self._place.credentials()
        kms = self._settings.kms
        members = {"region": kms.region, "access_key_id": access, "secret_access_key": secret, "session_token": session}
        return {"Kms": members | {"key_id": kms.key_id, "endpoint": kms.endpoint}}

    def _ask(self, request: Any, seconds: float = parent.REPLY_SECONDS) -> Any:
        return parent.ask(self._running().vsock, self._settings.enclave.rpc_port, request, seconds)

    def _running(self) -> RunningEnclave:
        if self._enclave is None:
            raise MachineError("there is no enclave")
        return self._enclave

    def _write_files(self, held: _Held) -> None:
        """Certificate and stanza of what is served."""
        service, target, served = self._settings.options.service, held.settings.target, held.served
        assert served is not None  # noqa: S101 - it was put there just now, or before
        described = self._ask({"DescribeToken": held.access()})
        held.uri = described["TokenDescription"]["keys"][0]["uri"]
        certificate = self._run / stanza.certificate_name(service, held.settings.label)
        write_atomically(certificate, served.certificate, 0o644)
        if target is not None:
            uri = stanza.key_uri(held.uri, held.pin)
            if service == "httpd":
                text = stanza.apache(_existing(target.path), uri, certificate)
            else:
                text = stanza.nginx(uri, certificate, target.form)
            write_atomically(target.path, text, 0o440, (target.user, target.group))
        held.written = served

    def _tell_server(self) -> None:
        try:
            engine = all(held.settings.target is None or held.settings.target.form == "engine" for held in self._held)
            self._log(webserver.apply(self._settings.options, keeps_session=self._session_lives and engine))
            self._untold, self._session_lives = False, True
            if self._down_at is not None:
                self._log(f"service is restored after {time.monotonic() - self._down_at:.1f} s")
                self._down_at = None
        except AlcoveError as error:
            self._log(_said(error))
        except OSError as error:  # it has ended meanwhile
            self._log(f"the web server could not be told: {error.strerror}")

    def _look_at_workers(self) -> None:
        """Say when the web server's workers cannot reach the token: its master can, so nothing else tells."""
        shut_out = workers.shut_out(self._run / SOCKET, self._settings.options.pid_file)
        if shut_out and shut_out != self._shut_out:
            self._log(shut_out)
        self._shut_out = shut_out

    def _write_status(self) -> None:
        enclave = self._enclave
        status = {
            "pid": os.getpid(),
            "since": self._since,
            "starts": self._starts,
            "rpc_port": self._settings.enclave.rpc_port,
            "enclave": None if enclave is None else {"id": enclave.id, "cid": enclave.cid, "vsock": str(enclave.vsock)},
            "tokens": [_told(held) for held in self._held],
        }
        with contextlib.suppress(MachineError):
            write_atomically(self._run / STATUS, json.dumps(status), 0o644)


def _said(error: AlcoveError) -> str:
    return error.message + (f" ({error.hint})" if error.hint else "")


def _existing(path: Path) -> str:
    """What is in the web server's file.

    Raises:
        MachineError: It is there, and cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise MachineError(f"{path} cannot be read: it is not UTF-8") from None


def _told(held: _Held) -> dict[str, Any]:
    """A token as the status has it; the URI is without the PIN."""
    material = held.served
    expires = None if material is None else material.expires
    return {
        "label": held.settings.label,
        "source": held.settings.source,
        "served": material is not None,
        "expires": None if expires is None else expires.isoformat(),
        "uri": held.uri,
        "trouble": held.trouble,
    }
