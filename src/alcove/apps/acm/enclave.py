"""The program in the enclave: PKCS#11 for web servers on vsock port 9999, provisioning for the agent on port 10000.

    python -m alcove.apps.acm.enclave [POLICY]

POLICY is a JSON file in the image, /app/acm.json by default; with it the image says what it takes:

    {"kms_keys": ["arn:aws:kms:…"], "kms_ca": "/app/ca.pem", "proxy_port": 8000,
     "plain_keys": false, "full_profile": false}
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from alcove.apps.acm.log import to_stderr
from alcove.apps.acm.orders import Envelope
from alcove.apps.acm.provisioning import ImagePolicy, Provisioner
from alcove.apps.acm.rpc import RPC_PORT
from alcove.apps.acm.rpc_server import RpcServer, between_requests
from alcove.apps.acm.sealing import Kms
from alcove.apps.acm.server import P11_PORT, P11Server, listen
from alcove.apps.acm.token import Slots
from alcove.errors import InputError
from alcove.sdk import clock, entropy
from alcove.sdk.endpoint import PROXY_PORT
from alcove.sdk.kms import AttestedKms, Credentials
from alcove.sdk.nsm import Nsm

POLICY: Final = "/app/acm.json"
_KNOWN: Final = {"kms_keys", "kms_ca", "proxy_port", "plain_keys", "full_profile"}


def main() -> None:
    """Seed the random generator, then serve until the machine ends."""
    settings = read_policy(Path(sys.argv[1] if len(sys.argv) > 1 else POLICY))
    nsm = Nsm()
    entropy.seed(nsm)
    clock.correct(nsm)
    asyncio.run(_serve(settings, nsm))


def read_policy(path: Path) -> dict[str, Any]:
    """What the image takes.

    Raises:
        InputError: The file is not such a policy; an image with a mistake in it serves nobody.
    """
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(settings, dict) or set(settings) - _KNOWN:
        raise InputError(f"{path}: only {', '.join(sorted(_KNOWN))} can be set")
    keys = settings.get("kms_keys")
    if keys is not None and not (isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys)):
        raise InputError(f"{path}: kms_keys is a list of ARNs, or null for any")
    return settings


async def _serve(settings: dict[str, Any], nsm: Nsm) -> None:
    slots = Slots(time.monotonic)
    keys = settings.get("kms_keys")
    policy = ImagePolicy(
        None if keys is None else tuple(keys),
        plain_keys=settings.get("plain_keys") is True,
        full_profile=settings.get("full_profile") is True,
    )

    def connect(envelope: Envelope) -> Kms:
        clock.correct(nsm)
        credentials = Credentials(envelope.access_key_id, envelope.secret_access_key, envelope.session_token)
        return AttestedKms(
            envelope.region,
            credentials,
            envelope.endpoint,
            proxy_port=settings.get("proxy_port", PROXY_PORT),
            ca_file=settings.get("kms_ca"),
            attester=nsm,
        )

    atomically = between_requests(asyncio.get_running_loop())
    provisioner = Provisioner(slots, policy, connect, nsm, now=lambda: datetime.now(UTC), atomically=atomically)
    device = await P11Server(slots, to_stderr).start(listen(f"vsock:port={P11_PORT}"))
    provisioning = await RpcServer(provisioner, to_stderr).start(listen(f"vsock:port={RPC_PORT}"))
    to_stderr(f"serving PKCS#11 on port {P11_PORT} and provisioning on port {RPC_PORT}")
    async with device, provisioning:
        await asyncio.gather(device.serve_forever(), provisioning.serve_forever())


if __name__ == "__main__":
    main()
