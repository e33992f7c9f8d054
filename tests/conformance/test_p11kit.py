"""The vectors of p11-kit's messages against the server's reader and the client's writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vectors.collection import differences
from vectors.p11kit.generate import COLLECTIONS, DIRECTORY
from vectors.vectorfile import Vector, load

from alcove.apps.acm import message
from alcove.apps.acm.cryptoki import Refused
from alcove.apps.acm.values import Attribute, Mechanism, Room, Size
from alcove.errors import ProtocolError

ALL = load(Path(__file__).parent.parent.parent / "vectors" / "p11kit")
READ = [vector for vector in ALL if vector.get("expect") == "read"]
OTHERS = [vector for vector in ALL if vector.get("expect") != "read"]


def test_the_files_are_what_the_generators_make() -> None:
    """Every committed vector is made again, byte for byte; none is missing or left over."""
    assert not differences(DIRECTORY, COLLECTIONS)


def forms(vector: Vector) -> list[bool]:
    """Whether mechanisms are in the new encoding: the cases to try."""
    return {"old": [False], "new": [True], "either": [False, True]}[vector.get("mechanisms")]


def plain(item: Any) -> Any:
    """A value as the vectors write it."""
    match item:
        case bytes():
            return item.hex()
        case Size():
            return {"length": item.length}
        case Attribute() | Room():
            return [plain(part) for part in item]
        case Mechanism():
            return {"type": item.type, "parameter": plain(item.parameter)}
        case tuple():
            return [plain(part) for part in item]
        case _:
            return item


@pytest.mark.parametrize("vector", READ, ids=[vector.name for vector in READ])
def test_a_request_is_read_and_written_again(vector: Vector) -> None:
    """Call and arguments are the vector's, and they make the same bytes."""
    for new in forms(vector):
        request = message.parse_request(vector.payload, new=new)
        assert request.call.name == vector.get("call")
        assert plain(request.arguments) == json.loads(vector.get("arguments"))
        assert message.pack_request(request.call, request.arguments, new=new) == vector.payload


@pytest.mark.parametrize("vector", OTHERS, ids=[vector.name for vector in OTHERS])
def test_a_request_is_refused(vector: Vector) -> None:
    """A malformed one is an error of the protocol, a whole one is answered with the vector's return value."""
    for new in forms(vector):
        if vector.get("expect") == "malformed":
            with pytest.raises(ProtocolError):
                message.parse_request(vector.payload, new=new)
        else:
            with pytest.raises(Refused) as refused:
                message.parse_request(vector.payload, new=new)
            assert refused.value.ckr.name == vector.get("expect")
