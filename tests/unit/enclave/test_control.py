from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest

from alcove.devices.unix_path import listen
from alcove.enclave import control
from alcove.enclave.control import Command, ControlServer
from alcove.errors import MachineError


async def asked(path: Path, word: str, *, owner: int | None = None) -> object:
    commands = {"look": Command(lambda: {"n": 1}, for_all=True), "end": Command(lambda: {"n": 2})}
    server = ControlServer(listen(path, mode=0o666), commands)
    if owner is not None:
        server._owner = owner
    await server.start()
    try:
        return await asyncio.to_thread(control.ask, path, word)
    finally:
        server.close()


def test_a_command_is_answered(tmp_path: Path) -> None:
    """One word in, one JSON object out."""
    assert asyncio.run(asked(tmp_path / "a", "look")) == {"n": 1}
    assert asyncio.run(asked(tmp_path / "b", "end")) == {"n": 2}


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    """E38, as for everything a supervisor refuses."""
    with pytest.raises(MachineError, match="not known") as caught:
        asyncio.run(asked(tmp_path / "s", "dance"))
    assert caught.value.code == "E38"


def test_others_may_look_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cli.md §3.4: a user who is neither the owner nor root gets what is for all."""
    monkeypatch.setattr(control, "_peer_uid", lambda _: 4711)
    assert asyncio.run(asked(tmp_path / "a", "look", owner=1000)) == {"n": 1}
    with pytest.raises(MachineError, match="only the enclave's owner and root"):
        asyncio.run(asked(tmp_path / "b", "end", owner=1000))


def test_no_answer_is_e39(tmp_path: Path) -> None:
    """Nobody listens at the socket: none is there, its process has ended, or it ends before it answers."""
    path = tmp_path / "s"
    with pytest.raises(control.NobodyListensError) as caught:
        control.ask(path, "look")
    assert caught.value.code == "E39"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def end() -> None:
            listener.accept()[0].close()

        ending = threading.Thread(target=end)
        ending.start()
        with pytest.raises(control.NobodyListensError):
            control.ask(path, "look")
        ending.join()
    with pytest.raises(control.NobodyListensError):
        control.ask(path, "look")


def test_silence_is_e39(tmp_path: Path) -> None:
    """A process that is there and says nothing in time is not one that has ended."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(MachineError) as caught:
            control.ask(tmp_path / "s", "look", seconds=0.01)
    assert caught.value.code == "E39"
    assert not isinstance(caught.value, control.NobodyListensError)


def test_who_asks_early_is_answered_late(tmp_path: Path) -> None:
    """The socket takes questions before there is a server: what was asked meanwhile is answered then."""
    listener = listen(tmp_path / "s", mode=0o666)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o666

    async def late() -> object:
        early = asyncio.create_task(asyncio.to_thread(control.ask, tmp_path / "s", "look"))
        await asyncio.sleep(0)
        server = ControlServer(listener, {"look": Command(lambda: {"n": 3})})
        await server.start()
        try:
            return await early
        finally:
            server.close()

    assert asyncio.run(late()) == {"n": 3}


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """A socket's address has 107 bytes; a runtime directory may be deeper."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    assert asyncio.run(asked(deep / "control.sock", "look")) == {"n": 1}
