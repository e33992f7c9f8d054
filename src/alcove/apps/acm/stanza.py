"""What the web server is told: where the certificate is, and which key on the token (acm.md §8.2, §8.3).

Core: texts out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import quote

_KEY_LINE: Final = re.compile(r"^SSLCertificateKeyFile\b.*$", re.MULTILINE)
_CERTIFICATE_LINE: Final = re.compile(r"^SSLCertificateFile\b.*$", re.MULTILINE)


def key_uri(uri: str, pin: str) -> str:
    """The key's URI with the PIN (RFC 7512 §2.4), without the serial, which another slot may have after a restart."""
    parts = [part for part in uri.split(";") if not part.startswith("serial=")]
    return f"{';'.join(parts)}?pin-value={quote(pin, safe='')}"


def nginx(uri: str, certificate: Path, form: str) -> str:
    """The lines that a `server` block includes.

    Args:
        uri: From `key_uri`.
        certificate: The chain's file.
        form: `engine`, with `ssl_engine pkcs11;` at the top of nginx.conf, or `provider` (nginx 1.29.0 and later).
    """
    key = f"engine:pkcs11:{uri}" if form == "engine" else f"store:{uri}"
    return f'ssl_certificate_key "{key}";\nssl_certificate "{certificate}";\n'


def apache(existing: str, uri: str, certificate: Path) -> str:
    """An existing file with the two lines that name key and certificate; they are added where there are none.

    Apache finds the token through `SSLCryptoDevice pkcs11`, or through OpenSSL's provider: the line is the same.
    """
    text = existing
    for pattern, line in (
        (_KEY_LINE, f'SSLCertificateKeyFile "{uri}"'),
        (_CERTIFICATE_LINE, f'SSLCertificateFile "{certificate}"'),
    ):
        # a function, so that nothing in the line is taken for a reference to a group
        text, found = pattern.subn(lambda _, line=line: line, text)  # type: ignore[misc]
        if not found:
            text = f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n"
    return text


def certificate_name(service: str, label: str) -> str:
    """AWS's name of the certificate's file."""
    return f"{service}-cert-{label.encode().hex()}.pem"


def joined(certificate: str, chain: str) -> str:
    """Certificate and chain as one text; whatever ends without a newline gets one."""
    parts = [part.strip() for part in (certificate, chain)]
    return "".join(f"{part}\n" for part in parts if part)
