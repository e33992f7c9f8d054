"""How a key is replaced without a handshake lost: the new one gets another id, and the old one stays beside it.

A web server's process that is there before the change sends the old certificate. It may open its first session, or look
for its key again, after the change and before it is told: under the name that it knows there must be the old key.

Core: values in, values out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from alcove.apps.acm.sources import Material

Keys = tuple[dict[str, Any], ...]  # as in AddToken
_OTHER: Final = {1: 2, 2: 1}


@dataclass(frozen=True, slots=True)
class Rotation:
    """The name of a token's key. A token of several keys has the names that its source gives, and they stay.

    Attributes:
        id: 1, AWS's, and 2 take turns.
    """

    id: int = 1

    def after(self, old: Material, new: Material) -> Rotation:
        """The next one, unless it is the same key, as when its certificate alone changed."""
        return self if _several(old, new) or _same(old, new) else Rotation(_OTHER[self.id])

    def alone(self, material: Material) -> Keys:
        """The keys under their names."""
        if _several(material):
            return material.keys
        return (self.named(material),)

    def beside(self, old: Material, new: Material) -> Keys:
        """The same, with the key before under the name that it had; its certificate may have ended and stays away."""
        if _several(old, new) or _same(old, new):
            return self.alone(new)
        before = Rotation(_OTHER[self.id]).named(old)
        return *self.alone(new), before | {"cert_pem": None}

    def named(self, material: Material) -> dict[str, Any]:
        """The only key, under its name."""
        (key,) = material.keys
        label = key["label"] if self.id == 1 else f"{key['label']}-{self.id}"
        return key | {"id": self.id, "label": label}


def _several(*materials: Material) -> bool:
    return any(len(material.keys) > 1 or material.keys[0]["id"] not in _OTHER for material in materials)


def _same(old: Material, new: Material) -> bool:
    secret = [{name: value for name, value in each.keys[0].items() if name != "cert_pem"} for each in (old, new)]
    return secret[0] == secret[1]
