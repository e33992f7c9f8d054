"""Keys that live on PKCS#11 tokens: named by a `pkcs11:` URI, used in place, never taken out."""

from alcove.pkcs11.keys import TokenKey
from alcove.pkcs11.token import open_key
from alcove.pkcs11.uri import SCHEME, Pkcs11Uri

__all__ = ["SCHEME", "Pkcs11Uri", "TokenKey", "open_key"]
