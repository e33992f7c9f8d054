"""``alcove credentials``: hand short-lived credentials to chosen enclaves."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any, Final

from alcove.cli import output
from alcove.cli.chosen import Chosen
from alcove.cli.parsers import Commands, command
from alcove.enclave import runtime
from alcove.enclave.paths import Paths
from alcove.errors import AlcoveError, MachineError, UsageError
from alcove.proxy.lease import PORT, Lease

_TEXT: Final = """\
hand short-lived credentials to chosen enclaves, over vsock, and renew them

They come from where AWS's SDKs look: the environment, a profile (with its role or web identity), or the instance's
metadata. An access key that does not end, such as that of a user of `alcove kms`, is not handed out: with --role-arn it
takes a role on for it (STS; AWS_ENDPOINT_URL_STS names another than AWS's).

In the enclave `alcove-enclave credentials` is the endpoint that unmodified SDKs take them from."""
_SHORTEST: Final = 900  # seconds: STS's own
_LONGEST: Final = 43200


def add_commands(commands: Commands) -> None:
    """Add ``credentials``."""
    example = "alcove credentials --enclave app --role-arn arn:aws:iam::000000000000:role/app"
    parser = command(commands, "credentials", credentials, "hand credentials to chosen enclaves", example)
    parser.description = _TEXT
    parser.add_argument(
        "--enclave",
        action="append",
        required=True,
        metavar="ENCLAVE",
        help="who gets them, by name or id; repeatable",
    )
    parser.add_argument("--pcr0", metavar="HEX", help="only if this is its image, and it is not in debug mode")
    parser.add_argument("--profile", metavar="NAME", help="of AWS's configuration files")
    parser.add_argument("--role-arn", metavar="ARN", help="hand out this role's credentials")
    parser.add_argument("--duration", metavar="SECONDS", type=int, default=3600, help="of the role's; 3600")
    parser.add_argument("--port", default=str(PORT), help="the vsock port that enclaves ask on; 9040")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for every request")


def credentials(arguments: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    from alcove.proxy import credentials as providing  # noqa: PLC0415 - asyncio is for this command alone
    from alcove.proxy import ports, rules  # noqa: PLC0415
    from alcove.proxy.service import stopped_by_signals  # noqa: PLC0415

    if not _SHORTEST <= arguments.duration <= _LONGEST:
        raise UsageError(f"--duration is from {_SHORTEST} to {_LONGEST} seconds")
    port = ports.parse_port(arguments.port, ports.MAX_VSOCK)
    paths = Paths.from_environment()
    runtime.prepare(paths)
    chosen = Chosen(paths, arguments.enclave, pcr0=arguments.pcr0)

    def admit(cid: int) -> str:
        try:
            return chosen.name(cid)
        except AlcoveError as error:
            raise rules.RefusedError(error.message) from None

    make = source(arguments.profile, arguments.role_arn, arguments.duration)
    first = make()  # what cannot be is said now, and not to the first enclave
    said = f"{', '.join(arguments.enclave)}: credentials on port {port}, now {first.access_key_id}"

    async def serve() -> None:
        async with stopped_by_signals() as stop:
            await providing.serve(providing.ProviderConfig(make, admit, port, first), stop, lambda: output.say(said))

    output.log_to_stderr("credentials", verbose=arguments.verbose)
    asyncio.run(serve())


def source(profile: str | None, role: str | None, seconds: int) -> Callable[[], Lease]:
    """What makes leases.

    Args:
        profile: Of AWS's configuration files, or None.
        role: The role to take on, or None to hand out what there is.
        seconds: For how long the role is taken on.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - slow to import
    from botocore.session import Session  # noqa: PLC0415

    def make() -> Lease:
        try:
            session = Session(profile=profile)
            return _role(session, role, seconds) if role else _own(session)
        except (BotoCoreError, ClientError, ValueError) as error:  # ValueError: an endpoint that is no URL
            raise MachineError(f"there are no credentials: {' '.join(str(error).split())}") from None

    return make


def _own(session: Any) -> Lease:
    found = session.get_credentials()
    if found is None:
        raise MachineError("there are no credentials", hint="set AWS_ACCESS_KEY_ID, or name a --profile")
    frozen = found.get_frozen_credentials()
    expires = getattr(found, "_expiry_time", None)  # botocore tells it nowhere else
    if frozen.token is None or not isinstance(expires, dt.datetime):
        raise UsageError(
            f"the access key {frozen.access_key} does not end, or does not say when",
            hint="give a --role-arn to take on",
        )
    return Lease(frozen.access_key, frozen.secret_key, frozen.token, expires)


def _role(session: Any, role: str, seconds: int) -> Lease:
    region = session.get_config_variable("region") or "us-east-1"
    client = session.create_client("sts", region_name=region)
    answer = client.assume_role(RoleArn=role, RoleSessionName="alcove-enclave", DurationSeconds=seconds)
    found = answer["Credentials"]
    return Lease(found["AccessKeyId"], found["SecretAccessKey"], found["SessionToken"], found["Expiration"])
