"""What a p11-kit client has asked and the enclave has not answered, and what to say when it never will.

Core: bytes in, bytes out.

p11-kit waits for an answer as long as that takes, and a web server's worker with it: every connection it has stands
still. So nothing may stay without an answer, and errors will do, but for one. libp11 up to 0.4.13, which is OpenSSL's
engine in Debian 12, waits for ever once a session is refused (mended in OpenSC/libp11#579). So a session is given that
leads nowhere: what is asked of it is refused, and that libp11 passes on.
"""

from __future__ import annotations

import struct
from typing import Final

from alcove.apps.acm import message
from alcove.apps.acm.calls import BY_NAME
from alcove.apps.acm.cryptoki import Ckr
from alcove.apps.acm.message import Frame, FrameReader

MAX_ANSWER: Final = 1 << 20  # bytes of one; the largest are lists of attributes
NOWHERE: Final = 1  # the session that leads nowhere
_OPEN_SESSION: Final = BY_NAME["C_OpenSession"]
_CALL: Final = struct.Struct(">I")


class Conversation:
    """One connection of a client, as it passes by."""

    def __init__(self) -> None:
        self._requests, self._answers = FrameReader(), FrameReader(MAX_ANSWER)
        self._open: dict[int, Frame] = {}

    @property
    def waiting(self) -> bool:
        """Whether the client waits for the enclave."""
        greeted = self._requests.version is not None
        return bool(self._open) or (greeted and self._answers.version is None) or self._answers.amid

    @property
    def amid(self) -> bool:
        """Whether the client has begun a request and not ended it."""
        return self._requests.amid

    def asked(self, data: bytes) -> bytes:
        """Take what the client sent; returns what to pass on.

        Those are whole requests: p11-kit writes each in three pieces, which would be three packets to the enclave.

        Raises:
            ProtocolError: It is none of p11-kit's.
        """
        greeting = data[:1] if self._requests.version is None else b""
        frames = self._requests.receive(data)
        self._open |= {frame.code: frame for frame in frames}
        return greeting + b"".join([frame.pack() for frame in frames])

    def answered(self, data: bytes) -> None:
        """Take what the enclave sent.

        Raises:
            ProtocolError: It is none of p11-kit's.
        """
        for frame in self._answers.receive(data):
            self._open.pop(frame.code, None)

    def give_up(self) -> bytes | None:
        """The enclave will not answer: what to tell the client instead, now and by `refuse` from then on.

        None when nothing can be told, before the versions are agreed and inside an answer: the connection must end.
        """
        if self._answers.version is None or self._answers.amid:
            return None
        answers = b"".join(map(_refusal, self._open.values()))
        self._open.clear()
        return answers

    def refuse(self, data: bytes) -> bytes:
        """The answers to what the client sent after the enclave was given up.

        Raises:
            ProtocolError: It is none of p11-kit's.
        """
        return b"".join(map(_refusal, self._requests.receive(data)))


def _refusal(request: Frame) -> bytes:
    session = request.body[: _CALL.size] == _CALL.pack(_OPEN_SESSION.id)
    body = message.pack_response(_OPEN_SESSION, (NOWHERE,)) if session else message.pack_error(Ckr.DEVICE_REMOVED)
    return Frame(request.code, body).pack()
