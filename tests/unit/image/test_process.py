"""What runs in an enclave: AWS's rule, Docker's rule, and the warnings about the difference."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Any

import pytest

from alcove.errors import ImageFormatError
from alcove.image.process import (
    DOCKER_PATH,
    LOG_PORT,
    Process,
    asks_for_log,
    command_of,
    differences,
    follow,
    nitro_process,
    oci_process,
)
from alcove.image.sources.tree import Data, Node, new_directory, parent, split
from alcove.image.users import User, look_up

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:An app:/home/app:/bin/sh
twin:x:1000:7:second entry of the same number:/twin:/bin/sh
broken:x:one:1:::
short:x
"""
GROUP = "root:x:0:\napp:x:1001:\nwheel:x:10:app,root\nvideo:x:44:app\nstaff:x:50:\nshort:x\nodd:x:many:app\n"
CONTENTS = (PASSWD.encode(), GROUP.encode())


def read(data: Data) -> Iterable[bytes]:
    return (CONTENTS[data.spool],)


def tree(*paths: str, links: dict[str, str] | None = None) -> Node:
    """A tree with empty programs at `paths`, links, and the two files of accounts."""
    root = new_directory()
    nodes: dict[str, Node] = {path: Node(stat.S_IFREG | 0o755) for path in paths}
    nodes["etc/passwd"] = Node(stat.S_IFREG | 0o644, data=Data(0, 0, len(PASSWD)))
    nodes["etc/group"] = Node(stat.S_IFREG | 0o644, data=Data(1, 0, len(GROUP)))
    nodes |= {path: Node(stat.S_IFLNK | 0o777, target=target.encode()) for path, target in (links or {}).items()}
    for path, node in nodes.items():
        parts = split(path.encode())
        parent(root, parts).children[parts[-1]] = node
    return root


@pytest.mark.parametrize(
    ("config", "command"),
    [
        ({"Cmd": ["a", "b"]}, ["a", "b"]),
        ({"Cmd": ["a"], "Entrypoint": ["e"]}, ["a"]),
        ({"Cmd": None, "Entrypoint": ["e", "f"]}, ["e", "f"]),
    ],
)
def test_cmd_wins_and_is_never_joined(config: dict[str, object], command: list[str]) -> None:
    """Entrypoint counts only without a Cmd (eif.md §7.5)."""
    assert command_of(config) == command


@pytest.mark.parametrize("config", [{}, {"Cmd": None}, {"Cmd": [], "Entrypoint": []}, {"Cmd": "text"}, {"Cmd": [1]}])
def test_an_image_without_a_command_is_refused(config: dict[str, object]) -> None:
    """Neither Cmd nor Entrypoint, or something that is no list of texts, by either rule."""
    with pytest.raises(ImageFormatError) as caught:
        command_of(config)
    assert caught.value.code == "E48"
    with pytest.raises(ImageFormatError) as caught:
        oci_process(config, tree(), read)
    assert caught.value.code == "E48"


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "high\ud800", "low\udc80"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_a_line_cannot_hold_is_refused(value: str, place: int) -> None:
    """A file has a line for each value; init could not read it back."""
    user = User(0, 0, (0,), "/")
    process = (Process([value], []), Process(["a"], [value]), Process(["a"], [], (value, user)))[place]
    with pytest.raises(ImageFormatError) as caught:
        process.files()
    assert caught.value.code == "E48"


def test_nitros_rule_writes_two_files() -> None:
    """The command and the environment as they are; neither user nor directory, which only Docker honours."""
    settings = {"Cmd": ["a", "b c"], "Env": ["A=b"], "User": "nobody", "WorkingDir": "/srv"}
    assert nitro_process(settings).files() == {b"cmd": b"a\nb c\n", b"env": b"A=b\n"}


def test_the_files_of_aws_hello_image_are_known() -> None:
    """Byte for byte what init reads in the public image `hello:v1` (eif.md §7.5)."""
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    settings = {"Cmd": ["/bin/hello.sh"], "Env": [path, "HELLO=Hello from the enclave side!"]}
    assert nitro_process(settings).files() == {
        b"cmd": b"/bin/hello.sh\n",
        b"env": path.encode() + b"\nHELLO=Hello from the enclave side!\n",
    }


def test_dockers_rule_writes_three() -> None:
    """Both lists joined, PATH and HOME as Docker sets them, the directory tidied, and every id as a number."""
    settings = {
        "Entrypoint": ["run"], "Cmd": ["--fast"], "Env": ["A=1", "A=2"], "User": "app",
        "WorkingDir": "//srv/./x/../app/",
    }  # fmt: skip
    files = oci_process(settings, tree(), read).files()
    assert list(files) == [b"cmd", b"env", b"oci"]
    assert files[b"cmd"] == b"run\n--fast\n"
    assert files[b"env"].decode().splitlines() == ["A=2", f"PATH={DOCKER_PATH}", "HOME=/home/app"]
    assert files[b"oci"].decode().splitlines() == ["/srv/app", "1000", "1001", "1001", "10", "44"]


def test_what_the_image_sets_is_kept() -> None:
    """Its own PATH and HOME, and / where it names no directory."""
    settings = {"Cmd": ["x"], "Env": ["PATH=/opt", "HOME=/var/empty"]}
    process = oci_process(settings, tree(), read)
    assert process.environment == ["PATH=/opt", "HOME=/var/empty"]
    assert process.identity == ("/", User(0, 0, (0, 10), "/root"))


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", User(0, 0, (0, 10), "/root")),
        ("root", User(0, 0, (0, 10), "/root")),
        ("app", User(1000, 1001, (1001, 10, 44), "/home/app")),
        ("1000", User(1000, 1001, (1001, 10, 44), "/home/app")),
        ("app:", User(1000, 1001, (1001, 10, 44), "/home/app")),
        ("app:staff", User(1000, 50, (50,), "/home/app")),
        ("app:60", User(1000, 60, (60,), "/home/app")),
        ("4711", User(4711, 0, (0,), "/")),
        ("4711:4712", User(4711, 4712, (4712,), "/")),
        (":staff", User(0, 50, (50,), "/root")),
    ],
)
def test_users_are_looked_up_as_a_runtime_does(user: str, expected: User) -> None:
    """Names and numbers; supplementary groups unless a group is named; numbers without an entry."""
    assert look_up(user, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    "user", ["nobody", "app:nobody", "broken", "-1", "2147483648", "9" * 40, "app:-1", "short", "root:odd"]
)
def test_users_that_do_not_exist_are_refused(user: str) -> None:
    """A name without an entry, an entry without a number, a number out of range: E48."""
    with pytest.raises(ImageFormatError) as caught:
        look_up(user, PASSWD, GROUP)
    assert caught.value.code == "E48"


def test_an_image_without_accounts_has_root() -> None:
    """As images from scratch do."""
    assert look_up("", "", "") == User(0, 0, (0,), "/")
    assert look_up("7", "", "") == User(7, 0, (0,), "/")


def test_accounts_are_found_through_links_and_only_in_the_image() -> None:
    """Some images keep /etc/passwd elsewhere; no link leads out of the tree."""
    root = tree(links={"etc/passwd": "../usr/lib/passwd", "usr/lib/passwd": "/../../data/passwd"})
    parent(root, split(b"data/passwd")).children[b"passwd"] = Node(0o100644, data=Data(0, 0, len(PASSWD)))
    assert oci_process({"Cmd": ["x"], "User": "app"}, root, read).identity == (
        "/",
        User(1000, 1001, (1001, 10, 44), "/home/app"),
    )


def test_links_in_a_circle_lead_nowhere() -> None:
    """And take no time."""
    assert follow(tree(links={"a": "b", "b": "a"}), "/a/c") is None


def test_a_huge_passwd_is_refused() -> None:
    """It is read into memory."""
    root = tree()
    root.children[b"etc"].children[b"passwd"].data = Data(0, 0, 1 << 40)
    with pytest.raises(ImageFormatError, match="/etc/passwd"):
        oci_process({"Cmd": ["x"]}, root, read)


PATH = ["PATH=/usr/local/bin:/usr/bin:/bin"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"Cmd": ["/bin/app"], "Env": PATH}, []),
        ({"Cmd": ["app"], "Env": PATH}, []),
        ({"Entrypoint": ["/bin/app"], "Env": PATH, "WorkingDir": "/", "User": "0:0"}, []),
        ({"Cmd": ["/bin/app"], "Entrypoint": ["tini"], "Env": PATH}, ["ENTRYPOINT ['tini']"]),
        ({"Cmd": ["/bin/app"], "Env": PATH, "WorkingDir": "/srv"}, ["WORKDIR /srv is ignored"]),
        ({"Cmd": ["/bin/app"], "Env": PATH, "User": "app"}, ["USER app is ignored"]),
        ({"Cmd": ["/bin/app"], "Env": PATH, "User": "root:staff"}, ["USER root:staff is ignored"]),
        ({"Cmd": ["/bin/app"]}, ["sets no PATH"]),
        ({"Cmd": ["python"], "Env": PATH}, ["python is looked for in /sbin"]),
        ({"Cmd": ["both"], "Env": PATH}, ["/usr/local/bin/both"]),
        ({"Cmd": ["./run"], "Env": PATH, "WorkingDir": "/srv"}, ["WORKDIR /srv", "./run is looked for in /"]),
        ({"Cmd": ["srv/run"], "Env": PATH}, []),
        ({"Cmd": ["/bin/sh", "-c", "app"], "Env": PATH}, ["holds no program /bin/sh"]),
    ],
)
def test_each_difference_from_docker_is_said_once(settings: dict[str, Any], said: list[str]) -> None:
    """One sentence for each way in which the image runs otherwise, and none for an image that runs the same."""
    root = tree(
        "usr/bin/app", "usr/local/bin/python", "srv/run", "usr/local/bin/both", "usr/bin/both", links={"bin": "usr/bin"}
    )
    sentences = list(differences(settings, root))
    assert len(sentences) == len(said), sentences
    for sentence, words in zip(sentences, said, strict=True):
        assert words in sentence


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({}, False),
        ({"Labels": None}, False),
        ({"Labels": {"alcove.log": "false", "else": "true"}}, False),
        ({"Labels": {"alcove.log": "true"}}, True),
    ],
)
def test_a_label_lets_the_parent_see_the_output(config: dict[str, object], shown: bool) -> None:
    """`true` alone does; it becomes a file for init, and so is measured."""
    assert asks_for_log(config) is shown
    assert Process(["/app"], [], log_port=LOG_PORT).files()[b"log"] == b"9042\n"
    assert b"log" not in Process(["/app"], []).files()


@pytest.mark.parametrize("labels", [["alcove.log"], {"alcove.log": "yes"}, {"alcove.log": ""}, {"alcove.log": 1}])
def test_a_label_that_says_neither_is_refused(labels: object) -> None:
    """A typing error must not decide whether an enclave shows what it prints."""
    with pytest.raises(ImageFormatError, match=r"alcove\.log|Labels"):
        asks_for_log({"Labels": labels})
