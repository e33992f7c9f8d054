"""acm.yaml as AWS documents it, what Alcove adds, and what a mistake gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alcove.apps.acm.settings import Settings, Target, parse
from alcove.errors import UsageError

AWS = """
enclave:
  cpu_count: 2
  memory_mib: 256
options:
  nginx_force_start: true
  nginx_reload_wait_ms: 500
  sync_interval_secs: 600
tokens:
  - label: nginx-acm-token
    source:
      Acm:
        certificate_arn: "arn:aws:acm:us-east-1:111122223333:certificate/0"
    target:
      NginxStanza:
        path: /etc/pki/nginx/nginx-acm.conf
        user: nginx
    refresh_interval_secs: 43200
"""


ACME = {"directory_url": "https://acme.example", "domains": ["a.example"], "account_key": "/a.pem"}


def read(text: str) -> Settings:
    return parse(text, run_directory=Path("/run/acm"), state_directory=Path("/var/lib/acm"))


def test_aws_s_example_is_read() -> None:
    """acm.md §2: with its aliases, and AWS's defaults where it says nothing."""
    settings = read(AWS)
    assert settings.strange == ()
    assert (settings.enclave.cpu_count, settings.enclave.memory_mib) == (2, 256)
    assert str(settings.enclave.image_path) == "/usr/share/nitro_enclaves/p11ne/p11ne.eif"
    assert (settings.enclave.p11kit_port, settings.enclave.rpc_port) == (9999, 10000)
    assert (settings.options.service, settings.options.sync_interval_secs) == ("nginx", 600)
    (token,) = settings.tokens
    assert token.source == "Acm"
    assert token.target == Target(Path("/etc/pki/nginx/nginx-acm.conf"), "nginx", None, "engine")
    assert (token.refresh_interval_secs, token.mechanisms, token.pin) == (43200, "tls", None)


def test_unknown_keys_are_told_and_passed_over() -> None:
    """AWS passes them over; ours says which, with their places."""
    document = yaml.safe_load(AWS)
    document |= {"extra": 1, "log": {"level": "Info"}}
    document["options"]["speed"] = "fast"
    document["tokens"][0]["colour"] = "red"
    document["tokens"][0]["source"]["Acm"]["region"] = "north"
    strange = {"extra", "options.speed", "tokens[0].colour", "tokens[0].source.Acm.region"}
    assert set(read(yaml.safe_dump(document)).strange) == strange


def changed(**change: Any) -> str:
    """A good file with one token changed."""
    token = {"label": "web", "source": {"LocalCa": {"directory": "/ca", "domains": ["a.example"]}}} | change
    return yaml.safe_dump({"enclave": {"cpu_count": 2, "memory_mib": 512}, "tokens": [token]})


def test_a_born_key_s_token_is_read() -> None:
    """Names come from the source; mechanisms and rate from the token."""
    (token,) = read(changed(mechanisms="full", rate=5, pin="abcd1234")).tokens
    assert (token.domains, token.mechanisms, token.rate, token.pin) == (("a.example",), "full", 5.0, "abcd1234")
    assert token.target is None
    assert "abcd1234" not in repr(token)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "acm.yaml is not YAML"),
        ("", "acm.yaml: the file is a mapping"),
        ("enclave: {cpu_count: 2, memory_mib: 256}", "acm.yaml: tokens is a list with something in it"),
        (
            "enclave: {cpu_count: two, memory_mib: 256}\ntokens: [{}]",
            "acm.yaml: enclave.cpu_count is not a whole number",
        ),
        ("enclave: {memory_mib: 256}\ntokens: [{}]", "acm.yaml: enclave.cpu_count is missing"),
        (changed(label=""), "acm.yaml: tokens[0].label has 1 to 32 bytes"),
        (changed(label="é" * 17), "acm.yaml: tokens[0].label has 1 to 32 bytes"),
        (changed(pin="x y!"), "acm.yaml: tokens[0].pin has 4 to 64 letters and digits"),
        (changed(source={"Vault": {}}), "acm.yaml: tokens[0].source is one of Acm, S3, FileDb, File"),
        (changed(source={"S3": {}}), "acm.yaml: tokens[0].source.S3.uri is missing"),
        (changed(source={"LocalCa": {"directory": "/ca", "domains": "a"}}), "domains is a list of names of hosts"),
        (changed(source={"LocalCa": {"directory": 5, "domains": ["a"]}}), "source.LocalCa.directory is not a text"),
        (changed(source={"Acme": ACME | {"http_port": "abc"}}), "source.Acme.http_port is not a whole number"),
        (changed(source={"Acme": ACME | {"tls_port": 65536}}), "source.Acme.tls_port is at most 65535"),
        (changed(source={"Acme": ACME | {"http_port": 0}}), "source.Acme.http_port is at least 1"),
        (changed(source={"S3": {"uri": "s3://b/k", "bound": "no"}}), "source.S3.bound is not true or false"),
        (changed(mechanisms="most"), "acm.yaml: tokens[0].mechanisms is one of tls, full"),
        (changed(rate=0), "acm.yaml: tokens[0].rate is at least 1"),
        (changed() + "kms: {proxy_port: 4294967295}", "acm.yaml: kms.proxy_port is at most 4294967294"),
        (AWS.replace("nginx-acm-token", "2024-99-99"), "acm.yaml is not YAML: month must be in 1..12"),
        (AWS.replace("nginx-acm-token", r'"\ud800"'), "acm.yaml: tokens[0].label has half a character"),
        ("[" * 5000, "acm.yaml is not YAML: maximum recursion depth exceeded"),
        (changed(target={"Conf": {"path": 'x";}'}}), "path has characters that a configuration cannot hold"),
        (changed(target={"Conf": {"path": "/x", "form": "other"}}), "form is one of engine, provider"),
        (changed() + "options: {service: lighttpd}", "acm.yaml: options.service is one of nginx, httpd"),
    ],
)
def test_a_mistake_gets_one_sentence_with_its_place(text: str, sentence: str) -> None:
    """No traceback, no guess."""
    with pytest.raises(UsageError) as caught:
        read(text)
    assert caught.value.message.startswith(sentence) or sentence in caught.value.message
    assert "\n" not in caught.value.message


def test_labels_are_unique() -> None:
    """Two tokens of one label would be one token."""
    document = yaml.safe_load(changed())
    document["tokens"] *= 2
    with pytest.raises(UsageError, match="two tokens have the same label"):
        read(yaml.safe_dump(document))


NAMES = [
    "enclave",
    "tokens",
    "options",
    "kms",
    "cpu_count",
    "label",
    "source",
    "LocalCa",
    "domains",
    "memory_mib",
    "target",
    "Conf",
    "path",
]
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
)


@given(documents)
def test_any_document_is_read_or_a_usage_error(document: Any) -> None:
    """Nothing else comes out, whatever types stand where."""
    try:
        read(yaml.safe_dump(document))
    except UsageError:
        return
