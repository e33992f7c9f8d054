"""What a root file system may have, as lists of Debian's packages and of what stays of them.

Core: a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MODULES: Final = "usr/lib/python3/dist-packages"


@dataclass(frozen=True, slots=True)
class Kit:
    """Something that a root file system may have.

    Attributes:
        packages: Debian's, with what they depend on.
        keep: What stays of everything unpacked, as patterns below the root.
        drop: What goes again, as patterns below Python's directories of modules.
        programs: Whose shared libraries stay, as patterns below the root.
        commands: Programs of Alcove's, by name, with the module and function that they run.
        modules: More of Alcove's modules, with what they import.
        imports: A line of Python that must run in the finished tree.
    """

    packages: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()
    imports: str = ""


BASE: Final = Kit(
    packages=("base-files", "ca-certificates"),
    keep=(
        "bin", "lib", "lib64", "sbin",  # links into /usr
        "dev", "proc", "run", "sys", "tmp",  # where the guest's init mounts
        "etc/debian_version", "etc/host.conf", "etc/os-release", "usr/lib/os-release", "usr/lib64",
        *(f"usr/lib/*-linux-gnu/{name}.so*" for name in ("ld-linux*", "libnss_files", "libnss_dns")),
    ),
)  # fmt: skip
KITS: Final = {
    "python": Kit(
        packages=("python3", "python3-cryptography"),
        keep=("usr/bin/python3", "usr/bin/python3.*", "usr/lib/python3.*", MODULES, "usr/lib/*-linux-gnu/ossl-modules"),
        drop=(
            "bcrypt*", "config-*", "curses", "dbm", "debpython", "ensurepip", "idlelib", "pydoc_data", "pydoc.py",
            "_pyrepl", "sitecustomize.py", "sqlite3", "test", "tkinter", "turtle.py", "turtledemo", "unittest", "venv",
            "doctest.py",
            *(f"lib-dynload/{name}.*" for name in (
                "_test*", "_xxtest*", "xx*", "_codecs_*", "_curses*", "_ctypes_test", "_dbm", "_lsprof", "_sqlite3",
                "readline",
            )),
        ),
        programs=(
            "usr/bin/python3.*", "usr/lib/python3.*/lib-dynload/*.so", f"{MODULES}/*.so", f"{MODULES}/*/*.so",
            f"{MODULES}/*/*/*/*.so",
        ),
        commands=(
            ("alcove-enclave", "alcove.cli.inside:main"), ("kmstool_enclave_cli", "alcove.cli.kmstool:main"),
        ),
        imports="from alcove.cli.inside import enclave_parser; enclave_parser(); import alcove.cli.kmstool",
    ),
    "acm": Kit(modules=("alcove.apps.acm.enclave",), imports="import alcove.apps.acm.enclave"),
    "boto3": Kit(
        packages=("python3-boto3",),
        drop=("boto3/examples", "boto3/data", "pygments"),
        imports="import boto3, alcove.sdk.boto3; alcove.sdk.boto3.install(); boto3.client('kms', 'us-east-1')",
    ),
    "node": Kit(
        packages=("nodejs",),
        keep=(  # what Debian's node reads of its own modules
            "usr/bin/node", "usr/bin/nodejs",
            *(f"usr/share/nodejs/{name}" for name in (
                "@fastify", "acorn", "acorn-walk", "balanced-match", "brace-expansion", "cjs-module-lexer", "minimatch",
                "undici",
            )),
        ),
        programs=("usr/bin/node",),
    ),
    "curl": Kit(packages=("curl",), keep=("usr/bin/curl",), programs=("usr/bin/curl",)),
    "shell": Kit(packages=("busybox-static",), keep=("usr/bin/busybox", "bin/busybox")),
}  # fmt: skip
FILES: Final = {
    "passwd": "root:x:0:0:root:/root:/usr/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
SERVICES: Final = ("kms", "sts", "sso", "sso-oidc", "signin")  # whose models botocore needs to sign in and to call KMS
