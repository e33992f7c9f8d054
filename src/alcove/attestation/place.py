"""Where in a chain somebody stands: the levels below the root, a Region, an instance."""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from alcove.attestation import pki
from alcove.attestation.attester import PARENT_RENEWAL
from alcove.attestation.files import PUBLIC, locked, write_file
from alcove.attestation.names import check_instance_id, check_region
from alcove.attestation.store import RESERVED
from alcove.errors import UsageError

# What each authority must have left to sign another child: the child's life, and the child's own reserve.
ZONAL_RENEWAL: Final = pki.INSTANCE_LIFE + PARENT_RENEWAL
REGIONAL_RENEWAL: Final = pki.ZONAL_LIFE + ZONAL_RENEWAL
BOARD_ASSET_TAG: Final = Path("/sys/devices/virtual/dmi/id/board_asset_tag")  # EC2 puts the instance id here

_INSTANCE_ID: Final = re.compile(r"i-[0-9a-f]{17}")


class Level(StrEnum):
    """An issuer below the root."""

    REGIONAL = "regional"
    ZONAL = "zonal"
    INSTANCE = "instance"

    @property
    def span(self) -> timedelta:
        """From its issue to its end."""
        regional, zonal = pki.REGIONAL_LIFE - pki.AUTHORITY_BACKDATE, pki.ZONAL_LIFE - pki.AUTHORITY_BACKDATE
        lives = {Level.REGIONAL: regional, Level.ZONAL: zonal}
        return lives.get(self, pki.INSTANCE_LIFE - pki.INSTANCE_BACKDATE)

    @property
    def reserve(self) -> timedelta:
        """What it has left when it is renewed."""
        return {Level.REGIONAL: REGIONAL_RENEWAL, Level.ZONAL: ZONAL_RENEWAL}.get(self, PARENT_RENEWAL)


@dataclass(frozen=True, slots=True)
class Place:
    """For whom a chain is: a Region and an instance's id, both of which become names of files.

    Raises:
        UsageError: One of them cannot be.
    """

    region: str
    instance_id: str

    def __post_init__(self) -> None:
        """Raises UsageError as above."""
        if check_region(self.region) in RESERVED:
            raise UsageError(f"a Region cannot be called `{self.region}`")
        check_instance_id(self.instance_id)


def default_instance_id(state: Path, board_asset_tag: Path = BOARD_ASSET_TAG) -> str:
    """This machine's instance id: EC2's own, else a random one that is made once and kept in `state`."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if _INSTANCE_ID.fullmatch(tag := board_asset_tag.read_text().strip()):
            return tag
    path = state / "instance-id"
    with locked(state):
        with contextlib.suppress(FileNotFoundError):
            return check_instance_id(path.read_text().strip())
        instance_id = f"i-{secrets.token_hex(9)[:17]}"
        write_file(path, f"{instance_id}\n".encode(), PUBLIC)
    return instance_id
