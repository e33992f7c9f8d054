"""AWS's commands, with AWS's flags and output (cli.md).

A command loads what it needs when it runs: the enclaves' side takes as long to load as an image of 100 MiB to hash.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alcove.cli import building, image, output
from alcove.cli.parsers import Commands, command
from alcove.errors import MachineError, UsageError

if TYPE_CHECKING:
    from alcove.enclave import config
    from alcove.enclave.paths import Paths
    from alcove.enclave.record import Record

_LONGEST_GRACE: Final = 3600.0


def add_commands(commands: Commands) -> None:
    """Add AWS's commands to a program."""
    building.add_commands(commands)
    _add_run(commands)
    _add_watch(commands)
    image.add_nitro_commands(commands)


def _add_run(commands: Commands) -> None:
    parser = command(
        commands,
        "run-enclave",
        run_enclave,
        "start an enclave",
        "nitro-cli run-enclave --eif-path app.eif --cpu-count 2 --memory 512",
    )
    parser.add_argument("--cpu-count", metavar="N", help="how many CPUs; or --cpu-ids")
    parser.add_argument("--cpu-ids", metavar="ID", nargs="+", help="which of the pool's CPUs")
    parser.add_argument("--memory", metavar="MIB", help="MiB, or a number with M, G or T")
    parser.add_argument("--eif-path", metavar="FILE", help="the image")
    parser.add_argument("--enclave-cid", metavar="CID", help="4 or more; the next free one from 16 on when not given")
    parser.add_argument("--enclave-name", metavar="NAME", help="the image's file name when not given")
    parser.add_argument("--debug-mode", action="store_true", help="a console, and zero PCRs in attestation documents")
    parser.add_argument("--attach-console", action="store_true", help="show the console after the start; debug mode")
    parser.add_argument("--config", metavar="JSON", help="a file with all of this, instead of flags")
    parser.add_argument(
        "--accelerator",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="Alcove's own",
    )
    parser.add_argument(
        "--boot-timeout", metavar="SECONDS", type=float, help="Alcove's own; 180, or more for large images"
    )
    parser.add_argument("--parent-role", metavar="ARN", help="Alcove's own: the role that PCR3 stands for")
    parser.set_defaults(parser=parser)


def _add_watch(commands: Commands) -> None:
    parser = command(
        commands,
        "describe-enclaves",
        describe_enclaves,
        "list the enclaves that run, or boot (state EMPTY)",
        "nitro-cli describe-enclaves --metadata",
    )
    parser.add_argument("--metadata", action="store_true", help="with the image's name, version and metadata")
    parser.add_argument("--all", action="store_true", help="Alcove's own: those that have ended too, and how they did")
    parser = command(
        commands,
        "terminate-enclave",
        terminate_enclave,
        "end an enclave, and wait until nothing of it is left",
        "nitro-cli terminate-enclave --enclave-name app",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--enclave-id", metavar="ID", help="as describe-enclaves shows it")
    which.add_argument("--enclave-name", metavar="NAME", help="if it is the only one of that name")
    which.add_argument("--all", action="store_true", help="the caller's own; root's are everybody's")
    parser.add_argument(
        "--grace", metavar="SECONDS", type=_grace, default=10.0, help="Alcove's own: for an application with a lifeline"
    )
    parser = command(
        commands,
        "console",
        console,
        "show the console of an enclave in debug mode, from its boot on",
        "nitro-cli console --enclave-name app --disconnect-timeout 10",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--enclave-id", metavar="ID", help="as describe-enclaves shows it")
    which.add_argument("--enclave-name", metavar="NAME", help="if it is the only one of that name")
    parser.add_argument("--disconnect-timeout", metavar="SECONDS", help="end then; else when the enclave ends")
    parser.add_argument("--quiet", action="store_true", help="Alcove's own: nothing but the console's bytes")


def run_enclave(arguments: argparse.Namespace) -> None:
    """``run-enclave``."""
    from alcove.enclave import lifecycle  # noqa: PLC0415
    from alcove.enclave.paths import Paths  # noqa: PLC0415

    request = _run_request(arguments)
    output.say("Start allocating memory...")
    started = lifecycle.run_enclave(request)
    output.say(started.pop("Note"))
    output.say(
        f"Started enclave with enclave-cid: {started['EnclaveCID']}, memory: {started['MemoryMiB']} MiB, "
        f"cpu-ids: {started['CPUIDs']}"
    )
    output.result(started)
    if request.attach_console:
        # by the answer, not by a search: an enclave that has ended since has a console too
        _copy_console(Paths.from_environment(), lifecycle.record_of(started, debug_mode=True), None)


def _run_request(arguments: argparse.Namespace) -> config.RunRequest:
    from alcove.enclave import config  # noqa: PLC0415

    given = ("cpu_count", "cpu_ids", "memory", "eif_path", "enclave_cid", "enclave_name", "debug_mode")
    if arguments.config is not None:
        if clash := [name for name in given if getattr(arguments, name) not in (None, False)]:
            arguments.parser.error(f"--config and --{clash[0].replace('_', '-')} exclude each other")
        asked = dataclasses.replace(config.parse_config(read_text(arguments.config)), **_own(arguments))
        # AWS's takes --attach-console beside --config and ignores it
        return dataclasses.replace(asked, attach_console=True, debug_mode=True) if arguments.attach_console else asked
    if missing := [name for name in ("memory", "eif_path") if getattr(arguments, name) is None]:
        arguments.parser.error(f"--{missing[0].replace('_', '-')} is needed (or --config)")
    if (arguments.cpu_count is None) == (arguments.cpu_ids is None):
        arguments.parser.error("exactly one of --cpu-count and --cpu-ids is needed")
    ids, count, cid = arguments.cpu_ids, arguments.cpu_count, arguments.enclave_cid
    return config.RunRequest(
        eif_path=str(Path(arguments.eif_path).absolute()),
        memory_mib=config.parse_memory(arguments.memory),
        cpu_count=None if count is None else config.parse_number("cpu-count", count),
        cpu_ids=None if ids is None else tuple(config.parse_number("cpu-id", text) for text in ids),
        enclave_cid=None if cid is None else config.parse_cid(cid),
        debug_mode=arguments.debug_mode or arguments.attach_console,
        attach_console=arguments.attach_console,
        enclave_name=arguments.enclave_name,
        **_own(arguments),
    )


def _own(arguments: argparse.Namespace) -> dict[str, Any]:
    """What AWS's command line and config file have no word for."""
    return {name: getattr(arguments, name) for name in ("accelerator", "boot_timeout", "parent_role")}


def read_text(path: str) -> str:
    """A file's text.

    Raises:
        UsageError: E19 when it cannot be read.
    """
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "it is not text"
        raise UsageError(f"cannot read `{path}`: {reason}", code="E19") from None


def describe_enclaves(arguments: argparse.Namespace) -> None:
    """``describe-enclaves``."""
    from alcove.enclave import ended, lifecycle  # noqa: PLC0415
    from alcove.enclave.paths import Paths  # noqa: PLC0415

    paths = Paths.from_environment()
    entries, failures = lifecycle.describe_enclaves(paths, metadata=arguments.metadata)
    for note in dict.fromkeys(entry.pop("Note") for entry in entries):
        output.say(note)
    if arguments.all:
        running = {entry["EnclaveID"] for entry in entries}  # as they were asked, whatever has happened since
        entries = [entry for entry in ended.load(paths) if entry["EnclaveID"] not in running] + entries
    output.result(entries)
    if failures:
        raise _failed_connections(failures)


def terminate_enclave(arguments: argparse.Namespace) -> None:
    """``terminate-enclave``."""
    from alcove.enclave.paths import Paths  # noqa: PLC0415

    paths = Paths.from_environment()
    if arguments.all:
        terminate_all(paths, arguments.grace)
    else:
        output.result(_terminate(paths, _find(paths, arguments), arguments.grace))


def _grace(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _LONGEST_GRACE:
        raise argparse.ArgumentTypeError(f"from 0 to {_LONGEST_GRACE:.0f}")
    return value


def terminate_all(paths: Paths, grace: float = 0.0) -> None:
    """The caller's own enclaves; root's are all (cli.md §3.4). One that cannot be ended keeps no other."""
    from alcove.enclave import registry  # noqa: PLC0415

    ended, failures = [], 0
    for record in registry.live(paths):
        try:
            ended.append(_terminate(paths, record, grace))
        except MachineError as problem:
            if problem.code != "E38":  # refused: somebody else's
                failures += 1
    output.result(ended)
    if failures:
        raise _failed_connections(failures)


def _failed_connections(failures: int) -> MachineError:
    output.say(f"Failed connections: {failures}")
    return MachineError(f"{failures} enclave process(es) did not answer", code="E39")


def _terminate(paths: Paths, record: Record, grace: float) -> dict[str, Any]:
    from alcove.cli import lifeline  # noqa: PLC0415
    from alcove.enclave import lifecycle  # noqa: PLC0415

    lifeline.stop(paths, record, grace)
    ended = lifecycle.terminate_enclave(paths, record)
    output.say(f"Successfully terminated enclave {record.enclave_id}.")
    return ended


def _find(paths: Paths, arguments: argparse.Namespace) -> Record:
    from alcove.enclave import registry  # noqa: PLC0415

    return registry.find(paths, enclave_id=arguments.enclave_id, name=arguments.enclave_name)


def console(arguments: argparse.Namespace) -> None:
    """``console``."""
    from alcove.enclave import config  # noqa: PLC0415
    from alcove.enclave.paths import Paths  # noqa: PLC0415

    paths = Paths.from_environment()
    text = arguments.disconnect_timeout
    seconds = None if text is None else config.parse_number("disconnect-timeout", text, bits=64)
    record = _find(paths, arguments)
    if not arguments.quiet:
        output.text(f"Connecting to the console for enclave {record.cid}...")
    _copy_console(paths, record, seconds, quiet=arguments.quiet)


def _copy_console(paths: Paths, record: Record, seconds: float | None, *, quiet: bool = False) -> None:
    from alcove.enclave import lifecycle  # noqa: PLC0415

    stream = lifecycle.console(paths, record, seconds)
    next(stream)
    if not quiet:
        output.text("Successfully connected to the console.")
    for chunk in stream:
        output.data(chunk)
