"""Tags of keys (kms.md §19).

Core: an authorized call and the tools in; the answer's members out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from alcove.kms.call import Call, Tools
from alcove.kms.errors import KmsError
from alcove.kms.operations.pages import listed, page

MAX_TAGS: Final = 50
_RESERVED: Final = "Tags beginning with aws: are reserved"
_DUPLICATE: Final = "Duplicate tag keys"


def tag_resource(tools: Tools, call: Call) -> dict[str, Any]:
    """TagResource: a tag that is there keeps its place and gets the new value."""
    tags = {**call.the_key.tags, **check_tags(call.params["Tags"])}
    if len(tags) > MAX_TAGS:
        raise KmsError("TagException", "Too many tags")
    _check_distinct(tags)
    tools.store.save_key(replace(call.the_key, tags=tags))
    return {}


def untag_resource(tools: Tools, call: Call) -> dict[str, Any]:
    """UntagResource: what is not there is no error."""
    gone = set(call.params["TagKeys"])
    if any(_is_reserved(name) for name in gone):
        raise KmsError("TagException", _RESERVED)
    tags = {name: value for name, value in call.the_key.tags.items() if name not in gone}
    tools.store.save_key(replace(call.the_key, tags=tags))
    return {}


def list_resource_tags(tools: Tools, call: Call) -> dict[str, Any]:
    """ListResourceTags, in pages, in the order in which they were added."""
    pairs = call.the_key.tags.items()
    tags = [(str(i), {"TagKey": name, "TagValue": value}) for i, (name, value) in enumerate(pairs)]
    found, rest = page(
        tools, call, fetch=lambda after, limit: listed(tags, after, limit), name=lambda t: t[0], default=50, most=50
    )
    return {"Tags": [tag for _, tag in found], **rest}


def check_tags(tags: Sequence[dict[str, str]]) -> dict[str, str]:
    """The tags of one request as a map.

    Raises:
        KmsError: TagException, in the recorded words.
    """
    names = [tag["TagKey"] for tag in tags]
    _check_distinct(names)
    if len(names) > MAX_TAGS:
        raise KmsError("TagException", "Too many tags")
    if any(_is_reserved(name) for name in names):
        raise KmsError("TagException", _RESERVED)
    return {tag["TagKey"]: tag["TagValue"] for tag in tags}


def _check_distinct(names: Collection[str]) -> None:
    """Policies compare the names of tags without case (§6.1): a second one could hide the first from a Deny."""
    if len({name.lower() for name in names}) != len(names):
        raise KmsError("TagException", _DUPLICATE)


def _is_reserved(name: str) -> bool:
    return name.lower().startswith("aws:")
