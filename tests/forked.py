"""What something does in a process of its own, for what cannot be undone: other users, given-up privileges."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any


def in_child(action: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Any:
    """What `action` returns, as JSON, in a child that has called `prepare`; an exception's text, if that is its end."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare()
            answer = action()
        except BaseException as error:  # noqa: BLE001 - a forked pytest must not go on
            answer = repr(error)
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)
