"""Patterns and policy variables (kms.md §7.1, §7.3).

Core: policy text and a request context in; tokens and matches out.

A pattern is a tuple of tokens: one literal character each, or one of the two wildcards. Text that a variable brings in
becomes literal tokens only, so nothing in a request can ever act as a wildcard.
"""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Final

from alcove.kms.errors import validation

SHORT: Final = 1 << 16  # product of lengths up to which characters are compared one by one
MAX_STEPS: Final = 1 << 19  # comparisons of one part of a pattern: some tenths of a second
Value = str | tuple[str, ...]
Context = Mapping[str, Value]
"""Condition key in lower case → its value; a tuple marks a multi-valued key, even with one element."""


class Wild(enum.Enum):
    """The two wildcards."""

    RUN = "*"
    ONE = "?"


Pattern = tuple[str | Wild, ...]

_VARIABLE = re.compile(r"\$\{(?:([*?$])|([^${},']+)(?:, '([^']*)')?)\}")
_WILDCARDS: Final = {"*": Wild.RUN, "?": Wild.ONE}


def expand(text: str, context: Context | None, *, wild: bool) -> Pattern | None:
    """The pattern of a policy value.

    Args:
        text: The value as the policy has it.
        context: Where variables look; None when the policy's version has no variables.
        wild: Whether ``*`` and ``?`` are wildcards here.

    Returns:
        The pattern, or None when a variable cannot be resolved.
    """
    tokens: list[str | Wild] = []
    place = 0
    for match in _VARIABLE.finditer(text) if context is not None else ():
        tokens += _tokens(text[place : match.start()], wild=wild)
        literal, key, default = match.groups()
        value = literal or _lookup(context or {}, key, default)
        if value is None:
            return None
        tokens += value
        place = match.end()
    return (*tokens, *_tokens(text[place:], wild=wild))


def variables_of(text: str) -> list[str]:
    """The condition keys, in lower case, that a policy value's variables look up."""
    return [match[2].strip().lower() for match in _VARIABLE.finditer(text) if match[2]]


def matches(pattern: Sequence[str | Wild], text: str) -> bool:
    """Whether the pattern covers the whole text.

    Raises:
        KmsError: ValidationException; they are too long to tell, with too many ``?`` between them.
    """
    return (_short_matches if len(pattern) * len(text) <= SHORT else _long_matches)(pattern, text)


def _short_matches(pattern: Sequence[str | Wild], text: str) -> bool:
    """Character by character: fast for what is short, and slow as the product of the lengths."""
    at = place = 0
    star, mark = -1, 0
    while place < len(text):
        if at < len(pattern) and pattern[at] is Wild.RUN:
            star, mark = at, place
            at += 1
        elif at < len(pattern) and (pattern[at] is Wild.ONE or pattern[at] == text[place]):
            at, place = at + 1, place + 1
        elif star >= 0:
            mark += 1
            at, place = star + 1, mark
        else:
            return False
    return all(token is Wild.RUN for token in pattern[at:])


def _long_matches(pattern: Sequence[str | Wild], text: str) -> bool:
    """Part by part: what is between two runs is looked for where it can be first."""
    first, *rest = _between_runs(pattern)
    if not rest:
        return len(first) == len(text) and _is_at(_literals(first), text, 0)
    *middle, last = rest
    place, end = len(first), len(text) - len(last)
    if place > end or not _is_at(_literals(first), text, 0) or not _is_at(_literals(last), text, end):
        return False
    for part in middle:
        found = _find(part, text, place, end)
        if found is None:
            return False
        place = found + len(part)
    return True


def _between_runs(pattern: Sequence[str | Wild]) -> list[list[str | Wild]]:
    parts: list[list[str | Wild]] = [[]]
    for token in pattern:
        if token is Wild.RUN:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _literals(part: Sequence[str | Wild]) -> list[tuple[int, str]]:
    """The literal text in a part that has no runs, by its offsets."""
    found: list[tuple[int, str]] = []
    for literal, tokens in itertools.groupby(enumerate(part), lambda pair: pair[1] is not Wild.ONE):
        pairs = list(tokens)
        if literal:
            found.append((pairs[0][0], "".join(str(token) for _, token in pairs)))
    return found


def _is_at(literals: Sequence[tuple[int, str]], text: str, place: int) -> bool:
    return all(text.startswith(literal, place + offset) for offset, literal in literals)


def _find(part: Sequence[str | Wild], text: str, start: int, end: int) -> int | None:
    """Where a part without runs is first between two places."""
    literals, latest = _literals(part), end - len(part)
    if latest < start or not literals:
        return start if start <= latest else None
    offset, longest = max(literals, key=lambda pair: len(pair[1]))
    place = start
    for steps in itertools.count(1):
        found = text.find(longest, place + offset, latest + offset + len(longest))
        if found < 0:
            return None
        place = found - offset
        if _is_at(literals, text, place):
            return place
        if steps * len(literals) > MAX_STEPS:
            break
        place += 1
    raise validation("A value of the request is too long for a pattern in a policy.")


def like(text: str, value: str) -> bool:
    """Whether a pattern without variables covers a value."""
    return matches(_tokens(text, wild=True), value)


def arn_matches(pattern: str, context: Context | None, arn: str, *, variables_from: int = 0) -> bool | None:
    """Whether six colon parts match one by one; the sixth keeps its colons (§7.1 ARN).

    Args:
        pattern: The policy's ARN.
        context: As in `expand`.
        arn: The ARN of the request.
        variables_from: Index of the first part in which variables are read (5 in Resource, §7.3).

    Returns:
        None when a variable cannot be resolved.
    """
    parts, found = _split_arn(pattern), arn.split(":", 5)
    if len(parts) != 6 or len(found) != 6:
        return False
    equal = True
    for index, (part, value) in enumerate(zip(parts, found, strict=True)):
        tokens = expand(part, context if index >= variables_from else None, wild=True)
        if tokens is None:
            return None
        equal = equal and matches(tokens, value)
    return equal


def _split_arn(text: str) -> list[str]:
    """Splits at the first five colons that are not inside a variable."""
    parts: list[str] = []
    depth = start = 0
    for index, char in enumerate(text):
        depth += (char == "{" and text[index - 1 : index] == "$") - (char == "}" and depth > 0)
        if char == ":" and not depth and len(parts) < 5:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _tokens(text: str, *, wild: bool) -> Pattern:
    return tuple(_WILDCARDS.get(char, char) for char in text) if wild else tuple(text)


def _lookup(context: Context, key: str, default: str | None) -> str | None:
    value = context.get(key.strip().lower())
    return value if isinstance(value, str) else default if value is None else None
