from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from alcove.errors import MachineError
from alcove.sdk import vsock


def attempts(*outcomes: Callable[[], socket.socket]) -> Callable[[], socket.socket]:
    queue = iter(outcomes)

    def attempt() -> socket.socket:
        return next(queue)()

    return attempt


def refused() -> socket.socket:
    raise ConnectionRefusedError("refused")


def early_close() -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


def test_an_early_close_is_tried_again() -> None:
    """A relay that accepts and hangs up, and a refusal, mean "not yet" (sdk.md §9)."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert vsock.persist(attempts(refused, early_close, lambda: ours), patience=5) is ours


def test_a_server_that_speaks_first_loses_nothing() -> None:
    """Looking for an early close takes no bytes away."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"hello")
        assert vsock.persist(lambda: ours, patience=0).recv(10) == b"hello"


@pytest.mark.parametrize("outcome", [refused, early_close])
def test_patience_ends(outcome: Callable[[], socket.socket]) -> None:
    """The last attempt's error is the one that is raised."""
    with pytest.raises(ConnectionError):
        vsock.persist(outcome, patience=0.1)


def test_nobody_there_is_said_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names CID and port and what to start."""
    monkeypatch.setattr(vsock, "_open", lambda port, cid: refused())
    with pytest.raises(MachineError, match="CID 3 port 8000") as caught:
        vsock.connect(8000, patience=0)
    assert "vsock-proxy" in str(caught.value.hint)
