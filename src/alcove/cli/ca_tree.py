"""How ``alcove ca show`` draws an inventory.

Core: an inventory in, lines out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def draw(inventory: dict[str, Any]) -> Iterator[str]:
    """The root and the chains as a tree, then the fleet, other roots and the lists."""
    yield from _certificate(inventory["Root"], "")
    for chain in inventory["Chains"]:
        for row in chain["Certificates"]:
            yield from _certificate(row, "  " * {"regional": 1, "zonal": 2}.get(row["Level"], 3))
    if inventory["NextRoot"]:
        yield from _section("root to come (`alcove ca rotate --switch` changes to it)", [inventory["NextRoot"]])
    yield from _section("former roots, trusted here until `alcove ca forget`", inventory["FormerRoots"])
    if inventory["Parents"]:
        yield "parents"
        for row in inventory["Parents"]:
            yield f"  {row['Parent']}: {row['Level']}, until {row['NotAfter']}"
            yield f"    {row['Name']}, serial {row['Serial']}"
    if inventory["RevocationLists"]:
        yield "revocation lists"
        for row in inventory["RevocationLists"]:
            count = len(row["Revoked"])
            yield f"  {row['Issuer']}: number {row['Number']}, {count} revoked, until {row['NextUpdate']}"
            yield f"    {row['File']}"


def _section(title: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    if rows:
        yield title
    for row in rows:
        yield from _certificate(row, "  ")


def _certificate(row: dict[str, Any], indent: str) -> Iterator[str]:
    branch = f"{indent[:-2]}└─ " if indent else ""
    below = " " * len(branch)
    stale = "" if row.get("Current", True) else " (not of the issuer above; replaced at its next use)"
    yield f"{branch}{row['Level']} {row['Name']}{stale}"
    yield f"{below}  {row['NotBefore']} to {row['NotAfter']}"
    yield f"{below}  sha256 {row['SHA256']}"
    yield f"{below}  serial {row['Serial']}"
    if key := row.get("Key"):
        yield f"{below}  key    {key['Kind']}{': ' + key['Where'] if key['Where'] else ''}"
