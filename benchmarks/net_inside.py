"""The application in the enclave of tests/vm/test_networking.py and benchmarks.networking.

It knows nothing of vsock but for its control port: its servers listen on TCP, and `alcove-enclave run` leads vsock to
them.

    8443    HTTPS; GET /attestation?nonce=HEX gives a document with the certificate's public key in it
    7007    sends back what comes
    7008    takes everything, and says how many bytes it were
    7009    takes a number in decimal and a line feed, and gives so many bytes

On vsock port 5000 it answers one JSON line with another: see OPERATIONS.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import socket
import ssl
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from alcove import vsock
from alcove.sdk import entropy
from alcove.sdk.nsm import Nsm

CHUNK = 256 * 1024
NSM = Nsm()


def certify() -> tuple[ssl.SSLContext, bytes]:
    """A key that never leaves the enclave, its self-signed certificate, and its public half."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "enclave")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(7))
    certificate = builder.sign(key, hashes.SHA256())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
        file.write(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ))  # fmt: skip
        file.flush()
        context.load_cert_chain(file.name)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return context, key.public_key().public_bytes(serialization.Encoding.DER, form)


class Web(BaseHTTPRequestHandler):
    """The web server; knows nothing of enclaves but how to ask for a document."""

    public_key = b""

    def do_GET(self) -> None:
        """Give the document, or greet."""
        url = urlsplit(self.path)
        body = b"hello from the enclave\n"
        if url.path == "/attestation":
            nonce = bytes.fromhex(parse_qs(url.query)["nonce"][0])
            body = NSM.attestation(nonce=nonce, public_key=self.public_key)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve_web() -> None:
    """HTTPS on 8443."""
    context, Web.public_key = certify()
    server = ThreadingHTTPServer(("127.0.0.1", 8443), Web)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """7007."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()


async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """7008."""
    total = 0
    while data := await reader.read(CHUNK):
        total += len(data)
    writer.write(b"%d\n" % total)
    writer.close()


async def source(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """7009."""
    left, data = int(await reader.readline()), bytes(CHUNK)
    while left:
        writer.write(data[:left])
        await writer.drain()
        left -= min(left, CHUNK)
    writer.close()


async def serve_tcp() -> None:
    """The plain servers."""
    for port, handler in ((7007, echo), (7008, sink), (7009, source)):
        await asyncio.start_server(handler, "127.0.0.1", port, limit=CHUNK, backlog=1024)
    await asyncio.get_running_loop().create_future()


async def tunnel(where: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream through the egress proxy."""
    proxy = urlsplit(os.environ["HTTPS_PROXY"])
    reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port, limit=CHUNK)
    writer.write(f"CONNECT {where} HTTP/1.1\r\n\r\n".encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in answer:
        raise ConnectionError(answer.decode())
    return reader, writer


async def tunnels(where: str, count: int) -> dict[str, Any]:
    """So many tunnels to an echo server, all asked for and open at once; how many gave back their own lines."""
    streams = await asyncio.gather(*(tunnel(where) for _ in range(count)))
    lines = [str(number).encode() * 200 + b"\n" for number in range(count)]
    for (_, writer), line in zip(streams, lines, strict=True):
        writer.write(line)
    came = await asyncio.gather(*(reader.readline() for reader, _ in streams))
    for _, writer in streams:
        writer.close()
    return {"right": sum(line == other for line, other in zip(lines, came, strict=True))}


async def send(where: str, size: int) -> dict[str, Any]:
    """So many bytes to a server like 7008; what it says it got."""
    reader, writer = await tunnel(where)
    data, left = bytes(CHUNK), size
    while left:
        writer.write(data[:left])
        await writer.drain()
        left -= min(left, CHUNK)
    writer.write_eof()
    return {"bytes": int(await reader.readline())}


async def receive(where: str, size: int) -> dict[str, Any]:
    """So many bytes from a server like 7009."""
    reader, writer = await tunnel(where)
    writer.write(b"%d\n" % size)
    total = 0
    while data := await reader.read(CHUNK):
        total += len(data)
    writer.close()
    return {"bytes": total}


def run(argv: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a program."""
    done = subprocess.run(argv, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def memory() -> dict[str, Any]:
    """Resident bytes of `alcove-enclave`, which is our parent, and what the whole machine could not give."""
    pages = int(Path(f"/proc/{os.getppid()}/statm").read_text().split()[1])
    found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(found[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return {"resident": pages * os.sysconf("SC_PAGE_SIZE"), "used": total - free}


OPERATIONS: dict[str, Any] = {
    "run": run,
    "memory": memory,
    "tunnels": lambda **args: asyncio.run(tunnels(**args)),
    "send": lambda **args: asyncio.run(send(**args)),
    "receive": lambda **args: asyncio.run(receive(**args)),
}


def answer(line: bytes) -> dict[str, Any]:
    """The answer to a line."""
    request = json.loads(line)
    try:
        result: dict[str, Any] = OPERATIONS[request.pop("op")](**request)
    except Exception as error:  # noqa: BLE001 - the parent is told
        return {"error": f"{type(error).__name__}: {error}"}
    return result


def main() -> None:
    """Serve."""
    entropy.seed(NSM)
    serve_web()
    threading.Thread(target=asyncio.run, args=(serve_tcp(),), daemon=True).start()
    with vsock.listen(5000) as listener:
        print("net: ready", flush=True)
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=serve, args=(stream,), daemon=True).start()


def serve(stream: socket.socket) -> None:
    """One caller of the control port; others are served meanwhile."""
    with stream, stream.makefile("rb") as lines:
        stream.sendall(json.dumps(answer(lines.readline())).encode() + b"\n")


if __name__ == "__main__":
    main()
