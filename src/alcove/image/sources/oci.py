"""An OCI image layout on disk (OCI image specification 1.1, "image-layout.md").

1. `index.json` and the indexes that it names lead to one manifest: by tag, then by platform
2. indexes, manifest and configuration are bounded JSON blobs, whose digests are checked
3. the layers become one tree (`flatten`)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alcove.errors import ImageFormatError
from alcove.image.sources.container import ARCHITECTURES, PLATFORMS, Flattened, OnBytes, settings_of, silent
from alcove.image.sources.flatten import flatten_layers
from alcove.image.sources.layers import Checksum, Layer, split_digest
from alcove.image.sources.limits import Limits

__all__ = ["ARCHITECTURES", "Flattened", "OciImage", "flatten", "load_layout"]

MAX_JSON: Final = 4 << 20  # OCI distribution specification, "Pushing Manifests": 4 MiB
MAX_LAYERS: Final = 512  # ours; Docker stops at 127
MAX_INDEXES: Final = 4  # ours: indexes within each other

_NAMES: Final = ("org.opencontainers.image.ref.name", "io.containerd.image.name")  # annotations.md; containerd

_Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class OciImage:
    """One image of a layout: its configuration and its layers, lowest first."""

    digest: str
    config: dict[str, Any]
    layers: tuple[Layer, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The `config` object: Cmd, Entrypoint, Env and the like; empty when the image has none."""
        return settings_of(self.config)

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of the unpacked layers."""
        return tuple(layer.diff_id for layer in self.layers)

    def flatten(self, directory: Path, limits: Limits, on_bytes: OnBytes) -> Flattened:
        """As the function."""
        return flatten(self, directory, limits, on_bytes)


def load_layout(layout: Path, tag: str | None = None, architecture: str | None = None) -> OciImage:
    """One image of an OCI layout directory (steps 1 and 2).

    Args:
        layout: The directory.
        tag: Which image is meant; not needed when there is one.
        architecture: `x86_64` or `aarch64`: which one of a multi-platform image is meant.

    Raises:
        ImageFormatError: When the layout is malformed, a digest is wrong, or it is not clear which image is meant.
    """
    manifest = _tagged(_json(layout / "index.json"), tag)
    for _ in range(MAX_INDEXES):
        if "manifests" not in manifest:
            return _image(layout, manifest)
        manifest = _blob_json(layout, _chosen(_descriptors(manifest), architecture))
    raise ImageFormatError(f"more than {MAX_INDEXES} indexes within each other", field="index")


def _image(layout: Path, manifest: _Json) -> OciImage:
    descriptor = _object(manifest.get("config"), "manifest config")
    config = _blob_json(layout, descriptor)
    layers = manifest.get("layers")
    diff_ids = _object(config.get("rootfs"), "config rootfs").get("diff_ids")
    if not isinstance(layers, list) or not isinstance(diff_ids, list) or len(layers) != len(diff_ids):
        raise ImageFormatError("the manifest's layers and the configuration's diff_ids do not match", field="layers")
    if len(layers) > MAX_LAYERS:
        raise ImageFormatError(f"{len(layers)} layers are more than {MAX_LAYERS}", field="layers")
    digests = [str(_object(layer, "layer").get("digest")) for layer in layers]
    return OciImage(
        digest=str(descriptor["digest"]),
        config=config,
        layers=tuple(
            Layer(digest, _blob_path(layout, digest), str(diff_id))
            for digest, diff_id in zip(digests, diff_ids, strict=True)
        ),
    )


def _tagged(index: _Json, tag: str | None) -> _Json:
    """The index without the images that are not meant."""
    descriptors = _descriptors(index)
    if tag is None:
        return index
    found = [descriptor for descriptor in descriptors if tag in _names(descriptor)]
    if not found:
        known = ", ".join(sorted({name for descriptor in descriptors for name in _names(descriptor)}))
        hint = f"it has: {known}" if known else "its images have no tags; leave the tag out"
        raise ImageFormatError(f"the layout holds no image with the tag {tag!r}", field="index.json", hint=hint)
    return {"manifests": found}


def _names(descriptor: _Json) -> Iterator[str]:
    annotations = descriptor.get("annotations")
    if isinstance(annotations, dict):
        yield from (str(annotations[key]) for key in _NAMES if key in annotations)


def _chosen(descriptors: list[_Json], architecture: str | None) -> _Json:
    """The one that is meant. One image that has several tags is one."""
    different = list({str(descriptor.get("digest")): descriptor for descriptor in descriptors}.values())
    if len(different) == 1:
        return different[0]
    wanted = PLATFORMS.get(architecture or "")
    fitting = [descriptor for descriptor in different if _platform(descriptor)[:2] == ("linux", wanted)]
    baseline = [descriptor for descriptor in fitting if _platform(descriptor)[2] in ("", "v8", "v1")]
    if fitting and (baseline or len(fitting) == 1):
        return (baseline or fitting)[0]
    there = sorted({"/".join(_platform(descriptor)[:2]) for descriptor in different} - {"unknown/unknown", "/"})
    if wanted and there:
        message = f"the image is not for linux/{wanted}"
        raise ImageFormatError(message, field="index", hint=f"it is for {', '.join(there)}; see --arch")
    tags = ", ".join(sorted({name for descriptor in different for name in _names(descriptor)}))
    hint = f"give one by its tag, oci:DIRECTORY:TAG; there are: {tags}" if tags else "keep one, with a tag, in a layout"
    raise ImageFormatError(f"the layout holds {len(different)} images", field="index", hint=hint)


def _platform(descriptor: _Json) -> tuple[str, str, str]:
    """Operating system, architecture and variant; empty where the index does not say."""
    platform = descriptor.get("platform")
    if not isinstance(platform, dict):
        return "", "", ""
    return str(platform.get("os", "")), str(platform.get("architecture", "")), str(platform.get("variant") or "")


def flatten(image: OciImage, directory: Path, limits: Limits | None = None, on_bytes: OnBytes = silent) -> Flattened:
    """The image's layers as one tree (step 3); arguments and errors are those of `flatten_layers`."""
    return flatten_layers(image.layers, directory, limits or Limits(), on_bytes)


def _blob_path(layout: Path, digest: str) -> Path:
    return layout.joinpath("blobs", *split_digest(digest))


def _blob_json(layout: Path, descriptor: _Json) -> _Json:
    digest = str(descriptor.get("digest"))
    return _json(_blob_path(layout, digest), digest)


def _json(path: Path, digest: str | None = None) -> _Json:
    """The object in a bounded JSON file, whose digest is checked first when there is one."""
    try:
        if not path.is_file():  # or a pipe, which nobody would ever write to
            raise FileNotFoundError(2, os.strerror(2))
        with path.open("rb") as file:
            data = file.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise ImageFormatError(f"larger than {MAX_JSON} bytes", field=path.name)
        if digest is not None:
            checksum = Checksum(digest)
            checksum.update(data)
            checksum.check()
        return parse_json(data, path.name)
    except OSError as error:
        raise ImageFormatError(f"not an OCI image layout: {error.strerror}", field=path.name) from None


def parse_json(data: bytes, what: str) -> _Json:
    """A JSON object that can be written again as it is.

    Raises:
        ImageFormatError: When it is none; `what` is the field.
    """
    try:
        item = json.loads(data, parse_constant=_refuse)
        json.dumps(item, ensure_ascii=False).encode()  # halves of characters could not be written again
    except (ValueError, RecursionError):
        raise ImageFormatError("not JSON", field=what) from None
    return _object(item, what)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _object(item: object, what: str) -> _Json:
    if not isinstance(item, dict):
        raise ImageFormatError("not a JSON object", field=what)
    return item


def _descriptors(index: _Json) -> list[_Json]:
    manifests = index.get("manifests")
    if not isinstance(manifests, list) or not manifests:
        raise ImageFormatError("it names no image", field="index")
    return [_object(item, "index") for item in manifests]
