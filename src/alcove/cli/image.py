"""The commands about image files: AWS's describe-eif, sign-eif, explain and pcr."""

from __future__ import annotations

import argparse
from pathlib import Path

from alcove.cli import output
from alcove.cli.codes import ERROR_CODES
from alcove.cli.parsers import Commands, add_signing_flags, command
from alcove.errors import UsageError


def add_nitro_commands(commands: Commands) -> None:
    """Add AWS's commands about images."""
    parser = command(commands, "describe-eif", describe_eif, "show what an enclave image holds and measures")
    parser.add_argument("--eif-path", required=True, metavar="FILE", help="the image")
    parser.add_argument("--strict", action="store_true", help="Alcove's own: refuse what nitro-cli would not write")
    parser = command(
        commands,
        "sign-eif",
        sign_eif,
        "sign an enclave image, or replace its signature",
        "nitro-cli sign-eif --eif-path app.eif --signing-certificate cert.pem --private-key key.pem",
    )
    parser.add_argument("--eif-path", metavar="FILE", help="the image, which is changed in place")
    add_signing_flags(parser)
    parser = command(commands, "explain", explain, "say what an error code means", "nitro-cli explain --error-code E26")
    parser.add_argument("--error-code", required=True, metavar="CODE", help="such as E26")
    parser = command(commands, "pcr", pcr, "compute the PCR of a file or of a signing certificate")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--input", metavar="FILE", help="any file")
    which.add_argument("--signing-certificate", metavar="PEM", help="the signer's: this is PCR8")


def describe_eif(arguments: argparse.Namespace) -> None:
    """``describe-eif``."""
    from alcove.image.describe import describe_image  # noqa: PLC0415 - only this command needs it

    description = describe_image(Path(arguments.eif_path), strict=arguments.strict)
    for warning in description.warnings:
        output.warn(warning)
    output.result(description.json)


def sign_eif(arguments: argparse.Namespace) -> None:
    """``sign-eif``."""
    from alcove.image import sign  # noqa: PLC0415 - only this command needs it

    if arguments.eif_path is None:
        raise UsageError("the argument `eif-path` is missing", code="E01", hint="give it on the command line")
    if arguments.signing_certificate is None or arguments.private_key is None:
        raise UsageError(
            "the image could not be signed: a certificate and a key are needed; nothing was changed",
            code="E60",
            hint="pass --signing-certificate and --private-key",
        )
    signer = sign.load_signer(Path(arguments.signing_certificate), arguments.private_key)
    measurements = sign.sign_eif(Path(arguments.eif_path), signer, output.warn)
    output.say("Enclave Image successfully signed.")
    output.result({"Measurements": measurements.to_json()})


def explain(arguments: argparse.Namespace) -> None:
    """``explain``: on standard error and with status 0, as upstream does."""
    code = arguments.error_code.upper()
    name, sentence = ERROR_CODES.get(code, ("", ""))
    output.say(f"[ {code} ] {name}: {sentence}" if name else f"No such error code {arguments.error_code}")


def pcr(arguments: argparse.Namespace) -> None:
    """``pcr``."""
    from alcove.image import pcr as measuring  # noqa: PLC0415 - only this command needs it

    if arguments.input is not None:
        output.result({"PCR": measuring.pcr_of_file(Path(arguments.input)).hex()})
    else:
        output.result({"PCR8": measuring.pcr_of_certificate(Path(arguments.signing_certificate)).hex()})
