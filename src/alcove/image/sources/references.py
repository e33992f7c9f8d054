"""What users write for `--docker-uri`, taken apart.

Core: texts in, texts out.

    app, app:v1, host:5000/team/app@sha256:…   a reference: looked for in several places
    docker://…, docker-daemon:… and the like   skopeo's own spelling of a place
    oci:DIRECTORY[:TAG], dir:ROOTFS            read where they are

References are Docker's (distribution/reference): the part before the first slash is a host when it has a dot or a
colon, or is `localhost`; without one it is Docker Hub.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

HUB: Final = "docker.io"

_TRANSPORT: Final = re.compile(r"(docker)://|(docker-daemon|docker-archive|oci|oci-archive|dir|containers-storage):")
_PORT: Final = re.compile(r":[0-9]+$")


def transport(uri: str) -> str | None:
    """The place that a uri names; None for a reference."""
    match = _TRANSPORT.match(uri)
    return match[1] or match[2] if match else None


def with_tag(uri: str) -> str:
    """The reference with `:latest` when it has neither tag nor digest (eif.md §7.6); a port is not a tag."""
    return uri if re.search(r"[:@]", uri.rsplit("/", 1)[-1]) else f"{uri}:latest"


def without_shadowed_tag(name: str) -> str:
    """The reference without its tag when it has a digest too, which then says it all."""
    rest, at, digest = name.partition("@")
    head, slash, last = rest.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}{at}{digest}" if at else name


def registry(name: str) -> str:
    """Host, and port if there is one, of the registry that a reference is about."""
    host, slash, _ = name.partition("/")
    return host if slash and (re.search(r"[.:]", host) or host == "localhost") else HUB


def is_loopback(host: str) -> bool:
    """Whether a registry is on this machine, where Docker too does without TLS: localhost, 127.0.0.0/8, ::1."""
    name = _PORT.sub("", host).strip("[]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def stored_names(name: str) -> Iterator[str]:
    """What buildah and podman call a reference in their store: what they built has `localhost` for a host."""
    if registry(name) == HUB and not name.startswith(f"{HUB}/"):
        yield f"localhost/{name}"
    yield name


def splits(text: str) -> Iterator[tuple[str, str | None]]:
    """Every way to read DIRECTORY[:TAG]; a directory's name may hold colons, and so may a tag."""
    yield text, None
    at = text.find(":")
    while at >= 0:
        yield text[:at], text[at + 1 :]
        at = text.find(":", at + 1)
