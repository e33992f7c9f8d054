"""Vectors of the metadata section (eif.md §4) and of the registers' arithmetic (eif.md §2)."""

from __future__ import annotations

import hashlib
import json

from vectors.collection import Collection, Fields
from vectors.eif.layout import INFO, pcr

vector = Collection("metadata")
measurement = Collection("measurement")
Made = tuple[bytes, Fields]


def compact(item: object) -> bytes:
    """JSON as the section has it."""
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()


def read(**changes: object) -> Made:
    """Metadata with other values under some keys, and what a reader shows of it."""
    info = INFO | changes
    fields: Fields = {"expect": "read", "image-name": info["ImageName"], "image-version": info["ImageVersion"]}
    return compact(info), fields | {"custom": json.dumps(info["CustomMetadata"])}


def refused(data: bytes) -> Made:
    """A section that no reader takes."""
    return data, {"expect": "refused", "field": "metadata"}


@vector
def plain() -> Made:
    """Neither container nor custom metadata: both are null, and both are there."""
    return read()


@vector
def custom() -> Made:
    """The content of a --metadata file."""
    return read(CustomMetadata={"Team": "blue", "Build": 7, "Nested": {"a": [1, 2.5, None, True]}})


@vector
def docker_info() -> Made:
    """The container image, as inspect shows it."""
    return read(DockerInfo={"Id": "sha256:00", "Config": {"Cmd": ["/app"], "Env": None}})


@vector
def unicode() -> Made:
    """A name beyond ASCII, as UTF-8."""
    return read(ImageName="größe-日本-🦀")


@vector
def key_unknown() -> Made:
    """A key that is not of the format: nobody looks at it."""
    data, fields = read(Extra=1)
    return data, fields


@vector
def spaced() -> Made:
    """Not compact: white space means nothing in JSON."""
    _, fields = read()
    return json.dumps(INFO, indent=2).encode(), fields


def _missing(key: str, expect: str = "refused") -> Made:
    data = compact({name: value for name, value in INFO.items() if name != key})
    return data, refused(data)[1] | (read()[1] | {"expect": expect} if expect == "tolerated" else {})


@vector
def custom_missing() -> Made:
    """No CustomMetadata: upstream's reader fails, though its schema calls the key optional. Read as null, and told."""
    return _missing("CustomMetadata", "tolerated")


@vector
def docker_info_missing() -> Made:
    """No DockerInfo, which upstream's reader fails for. Read as null, and told."""
    return _missing("DockerInfo", "tolerated")


@vector
def build_missing() -> Made:
    """No BuildMetadata."""
    return _missing("BuildMetadata")


@vector
def name_missing() -> Made:
    """No ImageName."""
    return _missing("ImageName")


@vector
def version_missing() -> Made:
    """No ImageVersion."""
    return _missing("ImageVersion")


@vector
def version_a_number() -> Made:
    """The version is a number."""
    return refused(compact(INFO | {"ImageVersion": 1.0}))


@vector
def name_twice() -> Made:
    """A key occurs twice, so two readers can see two names."""
    return refused(compact(INFO)[:-1] + b',"ImageName":"other"}')


@vector
def custom_an_array() -> Made:
    """Custom metadata that cannot be shown among the other keys."""
    return refused(compact(INFO | {"CustomMetadata": [1]}))


@vector
def empty() -> Made:
    """A section without a byte."""
    return refused(b"")


@vector
def array() -> Made:
    """JSON, and not an object."""
    return refused(b"[]")


@vector
def cut() -> Made:
    """The last brace is missing."""
    return refused(compact(INFO)[:-1])


@vector
def trailing_bytes() -> Made:
    """A second object follows."""
    return refused(compact(INFO) + b"{}")


@vector
def not_utf_8() -> Made:
    """A byte that is not UTF-8."""
    return refused(compact(INFO).replace(b"app", b"\xff"))


@vector
def utf_16() -> Made:
    """The same text in UTF-16: JSON of an image is UTF-8."""
    return refused(compact(INFO).decode().encode("utf-16-le"))


@vector
def byte_order_mark() -> Made:
    """A byte order mark, which JSON does not have (RFC 8259 §8.1)."""
    return refused(b"\xef\xbb\xbf" + compact(INFO))


@vector
def half_a_surrogate() -> Made:
    """An escape of half a character, which no UTF-8 can show."""
    return refused(compact(INFO).replace(b"app", b"\\ud800"))


@vector
def not_a_number() -> Made:
    """NaN, which some writers make and JSON does not have."""
    return refused(compact(INFO | {"DockerInfo": {"Size": 0}}).replace(b":0}", b":NaN}"))


@vector
def number_too_large() -> Made:
    """A number that no double holds, which some readers take for infinity."""
    return refused(compact(INFO | {"DockerInfo": {"Size": 0}}).replace(b":0}", b":1e999}"))


@vector
def key_twice_within() -> Made:
    """A key occurs twice in custom metadata."""
    return refused(compact(INFO | {"CustomMetadata": {"a": 0}}).replace(b'{"a":0}', b'{"a":0,"a":1}'))


@vector
def nested_64() -> Made:
    """As deep as Alcove reads: 64 levels, the outermost object's among them."""
    nested: list[object] = []
    for _ in range(62):
        nested = [nested]
    return read(DockerInfo=nested)


@vector
def nested_deeply() -> Made:
    """Ten thousand arrays in each other."""
    return refused(compact(INFO).replace(b'"DockerInfo":null', b'"DockerInfo":' + b"[" * 10000 + b"]" * 10000))


@measurement
def of_nothing() -> Made:
    """PCR2 of an image with one ramdisk."""
    return b"", {"expect": "equal", "rule": "content", "pcr": pcr(b""), "source": "eif.md §2"}


@measurement
def of_a_kernel() -> Made:
    """The register of six bytes."""
    return b"kernel", {"expect": "equal", "rule": "content", "pcr": pcr(b"kernel")}


def _raw(data: bytes) -> Made:
    value = hashlib.sha384(bytes(48) + data).hexdigest()
    return data, {"expect": "equal", "rule": "raw", "pcr": value, "source": "eif.md §2"}


@measurement
def of_a_role() -> Made:
    """PCR3: the role's name extends the register without an inner digest."""
    return _raw(b"arn:aws:iam::123456789012:role/Example")


@measurement
def of_an_instance() -> Made:
    """PCR4: the instance's name extends the register without an inner digest."""
    return _raw(b"i-0123456789abcdef0")
