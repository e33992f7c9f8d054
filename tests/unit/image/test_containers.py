"""Container images from every place, with the real buildah, skopeo and registry; compared with what buildah mounts."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit.image.storage import Storage, disk_lines, flat_lines
from tests.unit.image.tarballs import hard_link, layer, symlink

from alcove.errors import MachineError
from alcove.image.sources.container import ContainerImage, silent
from alcove.image.sources.fetch import ContainerSource
from alcove.image.sources.limits import Limits

MakeLayout = Callable[..., Path]

REGISTRY = Path(__file__).parents[3] / ".peers" / "usr" / "bin" / "docker-registry"
BUSYBOX = shutil.which("busybox")
NAME = "localhost/alcove/test:v1"
USER, PASSWORD = "reader", "open sesame"
HTPASSWD = f"{USER}:$2b$04$r7CMQU2lGUFoftZYMe3vC.KRCtgu5b306nz8eMH8CaD0AM9L/29ly\n"  # bcrypt of it

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="buildah's mounts are compared, which needs root"),
    pytest.mark.skipif(
        not shutil.which("buildah") or not shutil.which("skopeo"), reason="buildah or skopeo is missing"
    ),
]

DOCKERFILE = """\
FROM scratch
COPY --chmod=755 busybox /bin/busybox
RUN ["/bin/busybox", "ln", "-s", "busybox", "/bin/sh"]
RUN mkdir -p /keep/deep /gone/deep /opaque/old /shared && echo 1 >/keep/a && echo 2 >/gone/deep/b \\
 && echo 3 >/opaque/old/c && ln /keep/a /keep/hard && ln -s ../keep /shared/soft && mkfifo /keep/pipe \\
 && chmod 1777 /shared \\
 && echo 4 >/bin/tool && chmod 6755 /bin/tool && chown 1000:65534 /bin/tool && touch "/keep/a name é"
RUN rm -r /gone /opaque && mkdir /opaque && echo 5 >/opaque/new && ln /keep/a /keep/harder && ln /bin/tool /bin/tool2
RUN rm /keep/hard && chmod 700 /keep/deep && rm /shared/soft && echo 6 >/shared/soft \\
 && dd if=/dev/zero of=/big bs=1M count=3
ENV A=b
CMD ["/bin/tool", "x"]
"""


@dataclass(frozen=True)
class Built:
    """The image of the Dockerfile above, in a storage and in a layout."""

    storage: Storage
    layout: Path
    digest: str
    lines: list[str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Built once, in several layers."""
    if BUSYBOX is None:
        pytest.skip("busybox is missing")
    directory = tmp_path_factory.mktemp("built")
    (directory / "context").mkdir()
    (directory / "context" / "Dockerfile").write_text(DOCKERFILE)
    shutil.copy(BUSYBOX, directory / "context" / "busybox")
    storage = Storage(directory / "storage")
    flags = ["--layers", "--isolation", "chroot", "--timestamp", "1700000000", "--pull=false", "--quiet", "--tag", NAME]
    storage.run("buildah", "bud", *flags, directory / "context")
    storage.run("skopeo", "copy", "-q", f"containers-storage:{NAME}", f"oci:{directory / 'layout'}:v1")
    image = source(storage).fetch(f"oci:{directory / 'layout'}:v1", directory)
    assert len(image.diff_ids) == 5
    (directory / "work").mkdir()
    yield Built(storage, directory / "layout", image.digest, tree(image, directory / "work"))
    storage.close()


def source(storage: Storage, said: list[str] | None = None, **environment: str) -> ContainerSource:
    """A source that sees that storage, and notes what it says."""
    note = (lambda _: None) if said is None else said.append
    return ContainerSource("x86_64", storage.environment | environment, note)


def tree(image: ContainerImage, work: Path) -> list[str]:
    """An image's tree as lines."""
    return flat_lines(image.flatten(work, Limits(), silent))


def test_a_built_image_is_what_buildah_mounts(built: Built) -> None:
    """Every name of an image of five layers: type, mode, owner, time, content, and which names are one file."""
    storage = Storage(built.storage.directory.parent / "fresh")  # where the layers are laid on each other anew
    storage.run("skopeo", "copy", "-q", f"oci:{built.layout}:v1", f"containers-storage:{NAME}")
    with storage.mounted(NAME) as directory:
        assert disk_lines(directory) == built.lines
    names = {line.rpartition(" ")[0].split(" 0")[0].split(" 1")[0] for line in built.lines}
    assert {"big", "bin/tool2", "keep/a name é", "opaque/new", "shared/soft"} <= names
    assert not {"gone", "keep/hard", "opaque/old"} & names
    storage.close()


LAYERS = (
    layer(
        "bin2/",
        "usr/",
        "usr/lib/",
        ("usr/lib/tool", {"data": b"1", "mode": 0o6755, "uid": 1000, "gid": 7, "mtime": 1600000000}),
        symlink("lib", "usr/lib"),
        symlink("up", "../../usr"),
        symlink("root", "/usr"),
        hard_link("through", "lib/tool"),
        "lib/in-lib",
        "up/in-up",
        "root/in-root",
        "/absolute",
        "usr/../climbs",
        ("sticky/", {"mode": 0o1777, "gid": 5}),
        ("null", {"type": b"3", "devmajor": 1, "devminor": 3, "mode": 0o666}),
        ("disk", {"type": b"4", "devmajor": 8, "devminor": 1, "mode": 0o640}),
        ("pipe", {"type": b"6"}),
        ("large-owner", {"uid": 3_000_000_000, "gid": 2_000_000_000}),
        ("n" * 120 + "/", {}),
        ("n" * 120 + "/" + "m" * 200, {"data": b"long"}),
    ),
    layer(
        "hide/",
        "hide/a",
        "hide/s/",
        "hide/s/b",
        "white/",
        "white/a",
        "white/b",
        "tree/",
        "tree/x",
        ("file", {"data": b"f"}),
    ),
    layer(
        "hide/",
        "hide/.wh..wh..opq",
        "hide/new",
        "white/",
        "white/.wh.a",
        ("white/c", {"data": b"c"}),
        ("tree", {"data": b"a file now"}),
        "file/",
        "file/below",
        hard_link("again", "usr/lib/tool"),
        "sticky/x",
        symlink("bin2", "usr"),
    ),
    layer(
        ".wh.climbs",
        "white/",
        "white/.wh.b",
        ("white/b", {"data": b"after its whiteout"}),
        ".wh.absent",
        hard_link("third", "lib/tool"),
    ),
)


def test_hand_made_layers_are_what_the_vfs_driver_makes_of_them(make_layout: MakeLayout, tmp_path: Path) -> None:
    """Links of both kinds across layers, whiteouts, devices, owners, long and climbing names: as containers/storage."""
    layout = make_layout(*LAYERS)
    storage = Storage(tmp_path / "storage")
    storage.run("skopeo", "copy", "-q", f"oci:{layout}", f"containers-storage:{NAME}")
    with storage.mounted(NAME) as directory:
        expected = disk_lines(directory)
    storage.close()
    found = tree(source(storage).fetch(f"oci:{layout}", tmp_path), tmp_path)
    # A file that is put into a directory on disk moves the directory's time, which no layer asked for.
    assert [line for line in found if line[:7] != "sticky "] == [line for line in expected if line[:7] != "sticky "]
    assert any(line.startswith("sticky 041777 0:5 1000 ") for line in found)


def test_a_name_below_a_lower_link_is_what_the_overlay_driver_makes_of_it(
    make_layout: MakeLayout, tmp_path: Path
) -> None:
    """A layer with `lib/x` and no `lib` puts a directory where a lower layer has a link, as Docker's driver does."""
    storage = Storage(tmp_path / "storage", "overlay")
    if not storage.works():
        pytest.skip("overlayfs does not work here")
    layout = make_layout(
        layer("usr/", "usr/lib/", "usr/lib/a", symlink("lib", "usr/lib"), symlink("kept", "usr")),
        layer("lib/x", "usr/b"),
    )
    storage.run("skopeo", "copy", "-q", f"oci:{layout}", f"containers-storage:{NAME}")
    with storage.mounted(NAME) as directory:
        expected = disk_lines(directory)
    storage.close()
    found = tree(source(storage).fetch(f"oci:{layout}", tmp_path), tmp_path)
    assert [line.split()[:3] for line in found] == [line.split()[:3] for line in expected]
    assert any(line.startswith("lib 040755") for line in found)


@pytest.mark.parametrize("place", ["docker-archive", "oci-archive", "oci", "containers-storage", "dir"])
def test_every_place_gives_the_same_image(built: Built, tmp_path: Path, place: str) -> None:
    """The same tree, and but for docker-archive, whose configuration skopeo writes anew, the same id."""
    uris = {
        "docker-archive": f"docker-archive:{tmp_path}/image.tar:{NAME}",
        "oci-archive": f"oci-archive:{tmp_path}/image.tar:v1",
        "oci": f"oci:{tmp_path}/with:colon:v1",
        "containers-storage": f"containers-storage:{NAME}",
        "dir": f"dir:{tmp_path}/pieces",
    }
    if place == "oci":
        shutil.copytree(built.layout, tmp_path / "with:colon")
    elif place != "containers-storage":
        built.storage.run("skopeo", "copy", "-q", f"oci:{built.layout}:v1", uris[place])
    work = tmp_path / "work"
    work.mkdir()
    image = source(built.storage).fetch(uris[place], work)
    assert tree(image, work) == built.lines
    assert image.digest == built.digest
    assert (image.settings["Cmd"], image.settings["Env"][-1]) == (["/bin/tool", "x"], "A=b")


def test_a_name_is_found_in_the_local_storage(built: Built, tmp_path: Path) -> None:
    """With and without the host that buildah gives to what it built; and it is said where."""
    for name in (NAME, "alcove/test:v1"):
        said: list[str] = []
        image = source(built.storage, said).fetch(name, tmp_path)
        assert image.digest == built.digest
        assert said[0] == "Using the locally available Docker image..."
        assert "comes from buildah's storage" in said[1]


def test_without_buildah_skopeo_finds_it(built: Built, tmp_path: Path) -> None:
    """A machine with podman and skopeo alone."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("skopeo", "setpriv", "true"):
        (programs / name).symlink_to(str(shutil.which(name)))
    image = source(built.storage, PATH=str(programs)).fetch("alcove/test:v1", tmp_path)
    assert image.digest == built.digest


def test_an_image_that_is_nowhere_is_asked_for_everywhere(built: Built, tmp_path: Path) -> None:
    """One sentence names each place and its reason."""
    with pytest.raises(MachineError) as caught:
        source(built.storage, DOCKER_HOST=f"unix://{tmp_path}/none.sock").fetch("127.0.0.1:9/none:v1", tmp_path)
    message = caught.value.message
    assert caught.value.code == "E50"
    assert "\n" not in message
    for place in (
        "the Docker daemon at unix://",
        "none.sock",
        "buildah's storage",
        "the registry 127.0.0.1:9",
        "refused",
    ):
        assert place in message


def test_a_local_image_for_another_machine_is_passed_over(built: Built, tmp_path: Path) -> None:
    """The reason says for what it is."""
    other = ContainerSource("aarch64", built.storage.environment, lambda _: None)
    with pytest.raises(MachineError, match="its image is for x86_64"):
        other.fetch(NAME, tmp_path)


@dataclass(frozen=True)
class Registry:
    """A registry on loopback, without TLS."""

    host: str
    log: Path


@contextlib.contextmanager
def registry(directory: Path, *, htpasswd: str | None = None) -> Iterator[Registry]:
    """Debian's docker-registry with its data below a directory."""
    if not REGISTRY.exists():
        pytest.skip("no registry: scripts/setup --tests unpacks it")
    auth = ""
    if htpasswd is not None:
        (directory / "htpasswd").write_text(htpasswd)
        auth = f"auth: {{htpasswd: {{realm: test, path: {directory}/htpasswd}}}}\n"
    config = directory / "registry.yaml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:0'}}\n{auth}"
    )
    log = directory / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen([REGISTRY, "serve", config], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        yield Registry(_host(process, log), log)
    finally:
        process.terminate()
        process.wait(60)


def _host(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, once it does."""
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        if found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    pytest.fail("the registry does not listen")


@pytest.mark.parametrize(
    "spelling", ["{host}/team/app:v1", "docker://{host}/team/app:v1", "{host}/team/app:v2@{digest}"]
)
def test_an_image_pushed_to_a_registry_comes_back(built: Built, tmp_path: Path, spelling: str) -> None:
    """By tag and by digest, from a registry on loopback that speaks no TLS; the id and the tree are the same."""
    with registry(tmp_path) as place:
        target = f"docker://{place.host}/team/app:v1"
        flags = ["-q", "--dest-tls-verify=false", "--digestfile", str(tmp_path / "digest")]
        built.storage.run("skopeo", "copy", *flags, f"oci:{built.layout}:v1", target)
        said: list[str] = []
        uri = spelling.format(host=place.host, digest=(tmp_path / "digest").read_text())
        work = tmp_path / "work"
        work.mkdir()
        image = source(built.storage, said).fetch(uri, work)
    assert image.digest == built.digest
    assert tree(image, work) == built.lines
    if not spelling.startswith("docker:"):
        assert said == [f"{uri.replace(':v2', '')} comes from the registry {place.host}"]


HELPER = """\
#!/bin/sh
read host
echo "$1 $host" >>{log}
printf '{{"ServerURL": "%s", "Username": "{user}", "Secret": "{password}"}}' "$host"
"""


@pytest.mark.parametrize("where", ["HOME", "DOCKER_CONFIG", "DOCKER_CONFIG file", "REGISTRY_AUTH_FILE"])
@pytest.mark.parametrize("how", ["auths", "credHelpers", "credsStore"])
def test_docker_s_credentials_open_a_registry(built: Built, tmp_path: Path, where: str, how: str) -> None:
    """In each of the places that docker, nitro-cli and skopeo keep them, in clear or with a helper."""
    if (where, how) == ("REGISTRY_AUTH_FILE", "credsStore"):
        pytest.skip("that file is skopeo's own, which has no credsStore")
    programs, home, folder = tmp_path / "bin", tmp_path / "home", tmp_path / "config"
    for directory in (programs, home / ".docker", folder):
        directory.mkdir(parents=True)
    helper = programs / "docker-credential-test"
    helper.write_text(HELPER.format(log=tmp_path / "asked", user=USER, password=PASSWORD))
    helper.chmod(0o755)
    with registry(tmp_path, htpasswd=HTPASSWD) as place:
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        config: dict[str, Any] = {
            "auths": {"auths": {place.host: {"auth": secret}}},
            "credHelpers": {"credHelpers": {place.host: "test"}},
            "credsStore": {"auths": {place.host: {}}, "credsStore": "test"},
        }[how]
        paths = {
            "HOME": home / ".docker" / "config.json",
            "DOCKER_CONFIG": folder / "config.json",
            "DOCKER_CONFIG file": folder / "docker.json",
            "REGISTRY_AUTH_FILE": folder / "auth.json",
        }
        paths[where].write_text(json.dumps(config))
        variables = {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}
        if where == "DOCKER_CONFIG":
            variables["DOCKER_CONFIG"] = str(folder)
        elif where != "HOME":
            variables[where.partition(" ")[0]] = str(paths[where])
        target = f"docker://{place.host}/app:v1"
        flags = ["-q", "--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}"]
        built.storage.run("skopeo", "copy", *flags, f"oci:{built.layout}:v1", target)
        work = tmp_path / "work"
        work.mkdir()
        image = source(built.storage, **variables).fetch(f"{place.host}/app:v1", work)
        assert image.digest == built.digest
        assert (tmp_path / "asked").exists() == (how != "auths")
        assert not any(secret in path.read_text(errors="ignore") for path in work.rglob("*.json"))


def test_a_registry_that_wants_credentials_says_so(built: Built, tmp_path: Path) -> None:
    """Without any, the answer names the registry and what it said."""
    with registry(tmp_path, htpasswd=HTPASSWD) as place:
        with pytest.raises(MachineError, match=f"the registry {place.host}: .*(unauthorized|authentication)") as caught:
            source(built.storage).fetch(f"{place.host}/app:v1", tmp_path)
        assert caught.value.code == "E50"


class Daemon(http.server.BaseHTTPRequestHandler):
    """What skopeo asks of a Docker daemon: `GET /images/get?names=NAME`, answered with an archive."""

    archive: Path
    asked: list[str]

    def do_GET(self) -> None:
        """Answer."""
        self.asked.append(self.path)
        known = urllib.parse.unquote(self.path).endswith("/images/get?names=alcove/test:v1")
        data = self.archive.read_bytes() if known else b'{"message": "no such image"}'
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/x-tar" if known else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_HEAD(self) -> None:
        """Answer a ping."""
        self.send_response(200)
        self.send_header("Api-Version", "1.41")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        """A unix socket's peer has no address."""
        return ""


class UnixServer(http.server.ThreadingHTTPServer):
    """HTTP on a unix socket."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """Bind, without looking for a host's name."""
        self.socket.bind(self.server_address)  # type: ignore[arg-type]
        self.server_name, self.server_port = "daemon", 0


def test_a_docker_daemon_is_asked_first(built: Built, tmp_path: Path) -> None:
    """At DOCKER_HOST; what it does not have is looked for elsewhere."""
    archive, asked = tmp_path / "image.tar", list[str]()
    built.storage.run("skopeo", "copy", "-q", f"oci:{built.layout}:v1", f"docker-archive:{archive}:alcove/test:v1")
    handler = type("Handler", (Daemon,), {"archive": archive, "asked": asked})
    path = f"/tmp/alcove-test-{os.getpid()}.sock"  # a short path: sun_path has 108 bytes
    server = UnixServer(path, handler)  # type: ignore[arg-type]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for name, place in {"alcove/test:v1": "the Docker daemon at", NAME: "buildah's storage"}.items():
            work = tmp_path / place.split()[0]
            work.mkdir()
            said: list[str] = []
            image = source(built.storage, said, DOCKER_HOST=f"unix://{path}").fetch(name, work)
            assert image.digest == built.digest
            assert place in said[-1]
        assert tree(image, work) == built.lines
        assert any("alcove" in request for request in asked)
    finally:
        server.shutdown()
        server.server_close()
        Path(path).unlink()
