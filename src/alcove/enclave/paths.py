"""Where state, runtime files and configuration live (design: "Names that must not drift")."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alcove.errors import MachineError
from alcove.types import Port

_VARIABLES = ("ALCOVE_STATE", "ALCOVE_RUN", "ALCOVE_CONFIG")


@dataclass(frozen=True, slots=True)
class Paths:
    """The three directories, and the names inside them."""

    state: Path
    run: Path
    config: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, uid: int | None = None) -> Paths:
        """Take the directories from ``ALCOVE_STATE``, ``ALCOVE_RUN`` and ``ALCOVE_CONFIG``, or their defaults.

        Raises:
            MachineError: E07 when the default runtime directory is in ``/tmp``, and somebody else's.
        """
        env = os.environ if environment is None else environment
        user = os.getuid() if uid is None else uid
        if user == 0:
            defaults = ("/var/lib/alcove", "/run/alcove", "/etc/alcove")
        else:
            home, runtime = env.get("HOME", "/"), env.get("XDG_RUNTIME_DIR")
            defaults = (
                env.get("XDG_DATA_HOME", f"{home}/.local/share") + "/alcove",
                f"{runtime}/alcove" if runtime else _in_tmp(user, wanted=not env.get("ALCOVE_RUN")),
                env.get("XDG_CONFIG_HOME", f"{home}/.config") + "/alcove",
            )
        given = (Path(env.get(name) or default) for name, default in zip(_VARIABLES, defaults, strict=True))
        return cls(*(path.absolute() for path in given))  # the jail has another working directory

    @property
    def tools(self) -> Path:
        """The tools tree: QEMU and the default kernel."""
        return self.state / "tools"

    @property
    def accelerator_proof(self) -> Path:
        """Whether KVM was proven to work since the machine started."""
        return self.state / "accelerator.json"

    @property
    def qemu_proof(self) -> Path:
        """Which QEMU was found good."""
        return self.state / "qemu.json"

    @property
    def authority(self) -> Path:
        """The certificate authority's directory."""
        return self.state / "ca"

    @property
    def enclaves(self) -> Path:
        """One directory for every running enclave."""
        return self.run / "enclaves"

    def enclave(self, enclave_id: str) -> EnclavePaths:
        """The files of one enclave."""
        return EnclavePaths(self.enclaves / enclave_id)

    @property
    def cids(self) -> Path:
        """A link to each enclave's directory, under its CID: for programs in C (hostvsock)."""
        return self.run / "cid"

    @property
    def ended(self) -> Path:
        """How enclaves ended, and the consoles of those in debug mode."""
        return self.run / "ended"

    @property
    def ports(self) -> Path:
        """Sockets of the parent's listeners, shared by all enclaves."""
        return self.run / "vsock"

    def port(self, port: Port) -> Path:
        """The socket where enclaves reach the parent's ``port``."""
        return self.ports / f"{port}.sock"


def _in_tmp(user: int, *, wanted: bool) -> str:
    """A user's runtime directory where everybody may make one: who talks to enclaves there must know whose it is."""
    path = f"/tmp/alcove-{user}"  # noqa: S108 - see above
    if wanted and os.path.lexists(path) and os.lstat(path).st_uid != user:
        hint = "set XDG_RUNTIME_DIR or ALCOVE_RUN to a directory of your own"
        raise MachineError(f"the runtime directory `{path}` is somebody else's", code="E07", hint=hint)
    return path


@dataclass(frozen=True, slots=True)
class EnclavePaths:
    """The files in an enclave's runtime directory."""

    directory: Path

    @property
    def lock(self) -> Path:
        """Held with flock by the supervisor for as long as it lives."""
        return self.directory / "lock"

    @property
    def record(self) -> Path:
        """What was reserved, as JSON."""
        return self.directory / "record.json"

    @property
    def control(self) -> Path:
        """Describe and terminate, one JSON line each way."""
        return self.directory / "control.sock"

    @property
    def console(self) -> Path:
        """The console's output: what was kept, then what comes (debug mode only)."""
        return self.directory / "console.sock"

    @property
    def vsock(self) -> Path:
        """The hybrid socket: ``CONNECT port`` into the enclave."""
        return self.directory / "vsock.sock"

    def guest_port(self, port: Port) -> Path:
        """A listener for this enclave alone on the parent's ``port``."""
        return self.directory / f"vsock.sock_{port}"

    @property
    def nsm_device(self) -> Path:
        """Where QEMU finds the NSM back-end."""
        return self.directory / "nsm.dev"

    @property
    def vsock_device(self) -> Path:
        """Where QEMU finds the vsock back-end."""
        return self.directory / "vsock.dev"

    @property
    def boot(self) -> Path:
        """Kernel and ramdisks on their way into the guest."""
        return self.directory / "boot"
