"""``alcove kms policy``: lint, explain, and write the policy that pins a key to an image."""

from __future__ import annotations

import argparse
import functools
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from alcove.cli import output
from alcove.cli.attest_inputs import parse_hex, parse_roots, read_bytes, read_document
from alcove.cli.kms_store import add_store_flags, opened
from alcove.cli.parsers import Commands, command, command_group
from alcove.errors import AlcoveError, UsageError

if TYPE_CHECKING:
    from alcove.kms.call import Tools
    from alcove.kms.inquiry import Findings
    from alcove.kms.policy.lint import Finding
    from alcove.kms.stores import Store

DIFFERENT = 2  # exit status of an error, where 1 is an answer
_ACCOUNT = re.compile(r"[0-9]{12}", re.ASCII)


def add_commands(commands: Commands) -> None:
    """Add ``policy``."""
    inner = command_group(commands, "policy", "lint, explain and write policies")
    parser = command(
        inner,
        "lint",
        _answering(lint),
        "warn of what is legal in a policy and probably not meant; exit status 0 clean, 1 warnings, 2 an error",
        "alcove kms policy lint key-policy.json || echo 'look again'",
    )
    parser.add_argument("what", metavar="FILE|KEY", help="a policy, - for standard input; or a key's id, ARN or alias")
    parser.add_argument("--identity", action="store_true", help="the file is the policy of a user or role")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_store_flags(parser)
    _add_explain(inner)
    parser = command(
        inner,
        "for",
        pin,
        "print the key policy that lets one image, and nobody else, have plaintext",
        'aws kms put-key-policy --key-id ID --policy "$(alcove kms policy for app.eif)"',
    )
    parser.add_argument("eif", type=Path, help="the image")
    parser.add_argument("--principal", action="append", metavar="ARN", help="who asks for it; default: the account")
    parser.add_argument("--manager", action="append", metavar="ARN", help="who manages the key; default: the account")
    parser.add_argument("--account", default="111122223333", metavar="ID", help="default: that of a new store")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--image", action="store_true", help="by ImageSha384, which is PCR0, instead of PCR0, 1 and 2")
    which.add_argument("--signer", action="store_true", help="by PCR8: every image that this signer signs")
    parser.add_argument("--statement", action="store_true", help="print the Allow statement alone")


def _add_explain(group: Commands) -> None:
    parser = command(
        group,
        "explain",
        _answering(explain),
        "say why a request would be allowed or refused, statement by statement; exit status 0, 1, or 2 for an error",
        "alcove kms policy explain --user app --action kms:Decrypt --key alias/app --pcr 0=$(cat pcr0.hex)",
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", metavar="NAME", help="who asks; or --role, or --principal")
    who.add_argument("--role", metavar="NAME", help="a role that asks")
    who.add_argument("--principal", metavar="ARN", help="anybody else who asks")
    parser.add_argument("--action", required=True, metavar="kms:NAME", help="what is asked for")
    parser.add_argument("--key", metavar="KEY", help="its id, ARN or alias")
    proof = parser.add_mutually_exclusive_group()
    proof.add_argument("--document", metavar="FILE", help="an attestation document; - for standard input")
    proof.add_argument("--pcr", action="append", default=[], metavar="N=HEX", help="as if attested (again for more)")
    parser.add_argument("--root", action="append", metavar="ROOT", help="that the document must come from")
    parser.add_argument("--context", action="append", default=[], metavar="K=V", help="of the encryption context")
    parser.add_argument("--condition", action="append", default=[], metavar="K=V", help="any other condition key")
    parser.add_argument("--region", metavar="REGION", help="default: AWS_REGION, or us-east-1")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_store_flags(parser)


def _answering(handler: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """1 is an answer of these commands, so that their errors are 2, whatever they are elsewhere."""

    @functools.wraps(handler)
    def answer(arguments: argparse.Namespace) -> int:
        try:
            return handler(arguments)
        except AlcoveError as problem:
            output.error("alcove", problem)
        except OSError as problem:
            if problem.filename is None:
                raise
            output.error("alcove", UsageError(f"cannot use `{problem.filename}`: {problem.strerror}", code="E19"))
        return DIFFERENT

    return answer


def lint(arguments: argparse.Namespace) -> int:
    """Warn of what is suspicious in a policy."""
    from alcove.kms.model import kms_model  # noqa: PLC0415 - other commands do not need the KMS
    from alcove.kms.policy import lint as linter  # noqa: PLC0415
    from alcove.kms.policy.document import PolicyKind, parse_policy  # noqa: PLC0415

    actions = sorted(kms_model().operations - {"ReEncrypt"} | {"ReEncryptFrom", "ReEncryptTo"})
    kind = PolicyKind.IDENTITY if arguments.identity else PolicyKind.KEY
    text, more = _policy_text(arguments)
    found = [*linter.lint(text, actions, kind), *more]
    if arguments.json:
        whole = not arguments.identity and not any(finding.code == "malformed" for finding in found)
        administrators = linter.administrators(parse_policy(text)) if whole else []
        output.result({"Warnings": [finding.to_json() for finding in found], "Administrators": administrators})
    else:
        for finding in found:
            output.text(f"{finding.where}: {finding.message} [{finding.code}]")
    return 1 if found else 0


def _policy_text(arguments: argparse.Namespace) -> tuple[str, list[Finding]]:
    """The policy, and what is to be said of a key's grants."""
    name = arguments.what
    if name == "-" or Path(name).is_file():
        try:
            return (read_document(name) if name == "-" else read_bytes(Path(name))).decode(), []
        except UnicodeDecodeError:
            raise UsageError(f"`{name}` is not a policy: it is not UTF-8") from None
    if "." in name or ("/" in name and not name.startswith(("alias/", "arn:"))):
        raise UsageError(f"there is no file `{name}`")
    with opened(arguments) as store:
        return _policy_of(store, name)


def _policy_of(store: Store, name: str) -> tuple[str, list[Finding]]:
    from alcove.kms.inquiry import key_of  # noqa: PLC0415 - other commands do not need the KMS
    from alcove.kms.policy.lint import Finding  # noqa: PLC0415

    key = key_of(_tools(store, None), name, datetime.now(UTC))
    grants = store.grants("", 1000, region=key.region, key_id=key.key_id)
    risky = [grant for grant in grants if {"Decrypt", "ReEncryptFrom"} & set(grant.operations)]
    message = "it has no attestation condition, and lets its grantee have plaintext unless a Deny stops it"
    return key.policy, [Finding("open-grant", message, f"grant {grant.grant_id}") for grant in risky]


def explain(arguments: argparse.Namespace) -> int:
    """Say why a request would be allowed or refused."""
    from alcove.kms.inquiry import Question, caller_of, inquire  # noqa: PLC0415 - other commands do not need the KMS

    action = arguments.action.partition(":")[2] if ":" in arguments.action else arguments.action
    attested = _attested(arguments)
    others = {name.lower(): value for name, value in _pairs("--condition", arguments.condition).items()}
    pairs = _pairs("--context", arguments.context)
    with opened(arguments) as store:
        tools = _tools(store, arguments.region)
        question = Question(
            identity=caller_of(tools, _arn(arguments, tools)),
            action=_action(action),
            key=arguments.key,
            now=datetime.now(UTC),
            params={"EncryptionContext": pairs} if pairs else {},
            context={**attested, **others},
            attested=bool(attested),
        )
        findings = inquire(tools, question)
    if arguments.json:
        output.result(findings.to_json())
    else:
        _show(findings)
    return 0 if findings.decision.allowed else 1


def _tools(store: Store, region: str | None) -> Tools:
    from alcove.enclave.identity import region as own_region  # noqa: PLC0415 - other commands do not need the KMS
    from alcove.kms.call import Tools  # noqa: PLC0415
    from alcove.kms.keys import Realm  # noqa: PLC0415

    here = region or own_region()
    return Tools(store, Realm(store.account, here), secrets.token_bytes, (here,))


def _arn(arguments: argparse.Namespace, tools: Tools) -> str:
    if arguments.user:
        return tools.realm.user_arn(arguments.user)
    return tools.realm.role_arn(arguments.role) if arguments.role else str(arguments.principal)


def _action(name: str) -> str:
    """An action as AWS spells it; policies do not care, the request's own condition keys do."""
    from alcove.kms.model import kms_model  # noqa: PLC0415 - other commands do not need the KMS

    names = {action.lower(): action for action in kms_model().operations | {"ReEncryptFrom", "ReEncryptTo"}}
    if name.lower() not in names or name.lower() == "reencrypt":
        hint = "ReEncrypt needs kms:ReEncryptFrom and kms:ReEncryptTo" if name.lower() == "reencrypt" else None
        raise UsageError(f"kms:{name} is no action", hint=hint)
    return names[name.lower()]


def _attested(arguments: argparse.Namespace) -> Mapping[str, str]:
    """The condition keys of the document, or of the PCRs that stand for one."""
    from alcove.kms.policy.catalogue import attestation_context  # noqa: PLC0415 - as elsewhere here

    if arguments.document:
        return attestation_context(_verified_pcrs(arguments))
    pcrs: dict[int, bytes] = {}
    for name, value in _pairs("--pcr", arguments.pcr).items():
        if not re.fullmatch(r"[0-9]{1,2}", name, re.ASCII) or int(name) > 31:
            raise UsageError(f"--pcr {name}=… is no register", hint="use N=HEX, N from 0 to 31")
        pcrs[int(name)] = parse_hex(f"--pcr {name}", value) or b""
    return attestation_context(pcrs)


def _verified_pcrs(arguments: argparse.Namespace) -> dict[int, bytes]:
    """Of a genuine document, whenever it was made."""
    from alcove.attestation.policy import GenuineOnly  # noqa: PLC0415
    from alcove.attestation.verify import verify  # noqa: PLC0415

    document = read_document(arguments.document)
    verified = verify(document, roots=parse_roots(arguments.root, create=False), policy=GenuineOnly(), at=None)
    return dict(verified.document.pcrs)


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or name in found:
            raise UsageError(f"{option} {text!r} is no new NAME=VALUE")
        found[name] = value
    return found


def _show(findings: Findings) -> None:
    output.text(f"{'allowed' if findings.decision.allowed else 'refused'}: {findings.sentence}")
    policy = ""
    for step in findings.steps:
        if step.policy != policy:
            policy = step.policy
            output.text(f"\n{policy}")
        effect = "allow" if step.allow else "deny"
        delegates = ", and leaves it to identity policies" if step.account and step.allow else ""
        output.text(f"  {effect:5}  {step.statement}: {step.verdict}{delegates if step.verdict == 'applies' else ''}")
        for c in step.conditions:
            actual = "not there" if c.actual is None else c.actual if isinstance(c.actual, str) else ", ".join(c.actual)
            mark = "holds" if c.holds else "fails"
            output.text(f"         {mark}: {c.operator} {c.key}: {actual}; wanted {' or '.join(c.expected)}")


def pin(arguments: argparse.Namespace) -> None:
    """Print the policy that pins a key to an image."""
    from alcove.cli.attest_check import registers  # noqa: PLC0415
    from alcove.kms.policy import pin as pins  # noqa: PLC0415 - other commands do not need the KMS

    if not _ACCOUNT.fullmatch(arguments.account):
        raise UsageError(f"`{arguments.account}` is no account", hint="an account has 12 digits")
    root = f"arn:aws:iam::{arguments.account}:root"
    principals, managers = arguments.principal or [root], arguments.manager or [root]
    _check_principals([*principals, *managers])
    pcrs = registers(arguments.eif)
    if arguments.signer and 8 not in pcrs:
        raise UsageError(f"`{arguments.eif}` is not signed", hint="without --signer, the policy names the image itself")
    wanted = {8: pcrs[8]} if arguments.signer else {index: pcrs[index] for index in (0, 1, 2)}
    conditions = pins.conditions(wanted, image=arguments.image)
    if arguments.statement:
        output.result(pins.statement(conditions, principals))
    else:
        output.result(pins.policy(conditions, principals, managers))


def _check_principals(names: list[str]) -> None:
    from alcove.kms.policy.principals import parse_principals  # noqa: PLC0415 - other commands do not need the KMS

    try:
        parse_principals({"AWS": names})
    except ValueError as error:
        raise UsageError(str(error)) from None
