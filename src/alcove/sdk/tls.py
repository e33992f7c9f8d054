"""TLS that ends inside the enclave, and one HTTP exchange over it (sdk.md §2, §9).

The stream underneath belongs to the parent, which can read, change and cut it: hence the certificate check, and hence
one connection a call, with no idle state that can be cut at a bad moment.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final, Protocol

from alcove.errors import MachineError, ProtocolError
from alcove.sdk import vsock
from alcove.sdk.http import Answer, AnswerReader

TIMEOUT: Final = 60.0  # seconds for each step; a handshake under emulation takes about one
_CHUNK: Final = 65536


class Transport(Protocol):
    """Where a connection to the server comes from."""

    def connect(self) -> socket.socket:
        """A fresh stream that leads to the server; raises MachineError when there is none."""


class VsockTransport:
    """Through the parent's vsock-proxy.

    Args:
        port: The proxy's port on the parent.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def connect(self) -> socket.socket:
        """See `Transport`."""
        return vsock.connect(self._port)


class TcpTransport:
    """Over TCP: from where there is a network, such as a test or an enclave with one.

    Args:
        host: Name or address.
        port: TCP port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)

    def connect(self) -> socket.socket:
        """See `Transport`."""
        try:
            return socket.create_connection(self._address, timeout=TIMEOUT)
        except OSError as error:
            place = ":".join(map(str, self._address))
            raise MachineError(f"{place} cannot be reached: {error.strerror or error}") from None


def make_context(ca_file: str | None) -> ssl.SSLContext:
    """A client's context that trusts the certificates of one file, and no others.

    Args:
        ca_file: PEM; what it holds is trusted as it stands, be it a CA or the server's own certificate. None trusts
            the image's default store.

    Raises:
        MachineError: The file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks name and chain
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise MachineError(f"{ca_file}: no usable certificates: {error.strerror or error}") from None
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def exchange(transport: Transport, context: ssl.SSLContext, server_name: str, request: bytes) -> Answer:
    """Connect, check the server's certificate, send the request, read the answer.

    Raises:
        ProtocolError: The server's certificate is not trusted, or it does not speak HTTP.
        MachineError: The connection failed.
    """
    try:
        with transport.connect() as stream:
            stream.settimeout(TIMEOUT)
            with context.wrap_socket(stream, server_hostname=server_name) as secure:
                secure.sendall(request)
                return _read(secure)
    except ssl.SSLCertVerificationError as error:
        raise ProtocolError(
            f"the server's certificate is not trusted: {error.verify_message}",
            hint=f"it must name {server_name} and come from the CA in the image; is the enclave's clock right?",
        ) from None
    except OSError as error:
        raise MachineError(f"the connection to {server_name} failed: {error.strerror or error}") from None


def _read(secure: ssl.SSLSocket) -> Answer:
    reader = AnswerReader()
    while True:
        answer = reader.receive(secure.recv(_CHUNK))
        if answer is not None:
            return answer
