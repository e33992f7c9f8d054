"""vsock, for programs in an enclave and on its parent, on AWS and here, without a word about which.

    from alcove import vsock

    with vsock.connect((16, 5000)) as stream: ...          # a socket.socket
    with vsock.listen(8000) as listener:
        stream, (cid, port) = listener.accept()

`alcove.vsock.aio` has the same for asyncio's streams. Addresses are pairs of CID and port, as with the kernel's
sockets; the parent is CID 3.

Beneath are the kernel's AF_VSOCK sockets in an enclave and on an AWS parent, and Unix sockets where Alcove runs the
enclaves (devices.md §5.6): that is, where there is a runtime directory. ALCOVE_VSOCK=kernel or =hybrid decides it
otherwise.
"""

from __future__ import annotations

from alcove.types import HOST_CID, PARENT_CID
from alcove.vsock.sockets import Address, Listener, connect, listen
from alcove.vsock.transports import Transport, transport

__all__ = ["HOST_CID", "PARENT_CID", "Address", "Listener", "Transport", "connect", "listen", "transport"]
