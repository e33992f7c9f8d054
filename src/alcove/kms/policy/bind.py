"""Principals that are gone: a policy names who it meant, not whoever has the name next (kms.md §8.3).

Core: policy text in; policy text out.

A policy is written with ARNs, which are names. When a user or role is removed, its ARN in key policies becomes its
unique id, which nobody will ever have again. AWS shows policies that way too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def rename_principals(text: str, rename: Callable[[str], str]) -> str:
    """The policy with every ``AWS`` principal renamed; the very same text when none changes."""
    policy = json.loads(text)
    statements = policy["Statement"] if isinstance(policy["Statement"], list) else [policy["Statement"]]
    changed = False
    for statement in statements:
        for element in ("Principal", "NotPrincipal"):
            principal = statement.get(element)
            if isinstance(principal, dict) and "AWS" in principal:
                renamed = _renamed(principal["AWS"], rename)
                changed = changed or renamed != principal["AWS"]
                principal["AWS"] = renamed
    return _written(policy) if changed else text


def _written(policy: Any) -> str:
    """As short as JSON can be: a policy has a largest size, and this one was within it."""
    text = json.dumps(policy, ensure_ascii=False, separators=(",", ":"))
    lone = any("\ud800" <= char <= "\udfff" for char in text)  # half a pair can only be escaped
    return json.dumps(policy, separators=(",", ":")) if lone else text


def _renamed(value: Any, rename: Callable[[str], str]) -> Any:
    return [rename(name) for name in value] if isinstance(value, list) else rename(value)
