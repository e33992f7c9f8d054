"""One NSM exchange on a virtqueue: two chains in, one answer out (nsm.md §1.1, §1.2).

Core: a queue of chains in, used entries out.

The driver offers the request in one chain and room for the response in the next. Both must be there; the request is
returned first, with length 0, and the response second, with its exact length. Nothing is published in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from alcove.devices.nsm.messages import MAX_REQUEST, ErrorCode, Failed, encode_response
from alcove.devices.virtio.queue import Chain, SplitQueue
from alcove.devices.virtio.segments import gather, scatter, total

_TOO_SMALL: Final = encode_response(Failed(ErrorCode.BUFFER_TOO_SMALL))


def serve_one(queue: SplitQueue, handle: Callable[[bytes], bytes]) -> bool:
    """Serve one exchange if it is complete.

    Args:
        queue: The queue; the caller publishes.
        handle: Answers a request.

    Returns:
        Whether there was one.

    Raises:
        ProtocolError: The queue is broken.
    """
    request = queue.pop()
    if request is None:
        return False
    response = request
    if not request.writable:  # the usual shape: the response's buffer is a chain of its own
        after = queue.next_available
        second = queue.pop()
        if second is None and queue.next_available == after:
            queue.rewind(1)
            return False
        queue.push(request.head, 0)
        if second is None:  # the next chain could not be used and has gone back: so does its request
            return True
        response = second
    # one byte more than allowed is enough for the module to say InputTooLarge
    answer = handle(gather(request.readable, MAX_REQUEST + 1))
    queue.push(response.head, _write(response, answer))
    return True


def _write(chain: Chain, answer: bytes) -> int:
    room = total(chain.writable)
    if len(answer) > room:
        answer = _TOO_SMALL if len(_TOO_SMALL) <= room else b""
    scatter(chain.writable, answer)
    return len(answer)
