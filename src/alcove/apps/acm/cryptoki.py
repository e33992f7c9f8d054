"""PKCS#11's numbers, as far as they are used here (PKCS#11 2.40 and 3.0, acm.md §5–§7).

Core: tables.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

UNAVAILABLE: Final = (1 << 64) - 1  # CK_UNAVAILABLE_INFORMATION


class Ckr(IntEnum):
    """Return values."""

    OK = 0x0
    SLOT_ID_INVALID = 0x3
    GENERAL_ERROR = 0x5
    FUNCTION_FAILED = 0x6
    ARGUMENTS_BAD = 0x7
    ATTRIBUTE_SENSITIVE = 0x11
    ATTRIBUTE_TYPE_INVALID = 0x12
    ATTRIBUTE_VALUE_INVALID = 0x13
    DATA_INVALID = 0x20
    DATA_LEN_RANGE = 0x21
    DEVICE_ERROR = 0x30
    DEVICE_REMOVED = 0x32
    ENCRYPTED_DATA_INVALID = 0x40
    ENCRYPTED_DATA_LEN_RANGE = 0x41
    FUNCTION_NOT_SUPPORTED = 0x54
    KEY_HANDLE_INVALID = 0x60
    KEY_TYPE_INCONSISTENT = 0x63
    KEY_FUNCTION_NOT_PERMITTED = 0x68
    MECHANISM_INVALID = 0x70
    MECHANISM_PARAM_INVALID = 0x71
    OBJECT_HANDLE_INVALID = 0x82
    OPERATION_ACTIVE = 0x90
    OPERATION_NOT_INITIALIZED = 0x91
    PIN_INCORRECT = 0xA0
    PIN_LOCKED = 0xA4
    SESSION_COUNT = 0xB1
    SESSION_HANDLE_INVALID = 0xB3
    SESSION_PARALLEL_NOT_SUPPORTED = 0xB4
    SESSION_READ_ONLY_EXISTS = 0xB7
    SIGNATURE_INVALID = 0xC0
    SIGNATURE_LEN_RANGE = 0xC1
    TOKEN_NOT_PRESENT = 0xE0
    TOKEN_WRITE_PROTECTED = 0xE2
    USER_ALREADY_LOGGED_IN = 0x100
    USER_NOT_LOGGED_IN = 0x101
    USER_TYPE_INVALID = 0x103
    BUFFER_TOO_SMALL = 0x150
    CRYPTOKI_NOT_INITIALIZED = 0x190
    CRYPTOKI_ALREADY_INITIALIZED = 0x191


class Cko(IntEnum):
    """Classes of objects."""

    CERTIFICATE = 1
    PUBLIC_KEY = 2
    PRIVATE_KEY = 3
    MECHANISM = 7


class Ckk(IntEnum):
    """Types of keys."""

    RSA = 0
    EC = 3


class Cka(IntEnum):
    """Attributes."""

    CLASS = 0x0
    TOKEN = 0x1
    PRIVATE = 0x2
    LABEL = 0x3
    VALUE = 0x11
    CERTIFICATE_TYPE = 0x80
    ISSUER = 0x81
    SERIAL_NUMBER = 0x82
    TRUSTED = 0x86
    CERTIFICATE_CATEGORY = 0x87
    JAVA_MIDP_SECURITY_DOMAIN = 0x88
    CHECK_VALUE = 0x90
    KEY_TYPE = 0x100
    SUBJECT = 0x101
    ID = 0x102
    SENSITIVE = 0x103
    ENCRYPT = 0x104
    DECRYPT = 0x105
    WRAP = 0x106
    UNWRAP = 0x107
    SIGN = 0x108
    SIGN_RECOVER = 0x109
    VERIFY = 0x10A
    VERIFY_RECOVER = 0x10B
    DERIVE = 0x10C
    START_DATE = 0x110
    END_DATE = 0x111
    MODULUS = 0x120
    MODULUS_BITS = 0x121
    PUBLIC_EXPONENT = 0x122
    PRIVATE_EXPONENT = 0x123
    PRIME_1 = 0x124
    PRIME_2 = 0x125
    EXPONENT_1 = 0x126
    EXPONENT_2 = 0x127
    COEFFICIENT = 0x128
    PUBLIC_KEY_INFO = 0x129
    PRIME_BITS = 0x133
    SUB_PRIME_BITS = 0x134
    VALUE_BITS = 0x160
    VALUE_LEN = 0x161
    EXTRACTABLE = 0x162
    LOCAL = 0x163
    NEVER_EXTRACTABLE = 0x164
    ALWAYS_SENSITIVE = 0x165
    KEY_GEN_MECHANISM = 0x166
    MODIFIABLE = 0x170
    COPYABLE = 0x171
    DESTROYABLE = 0x172
    EC_PARAMS = 0x180
    EC_POINT = 0x181
    SECONDARY_AUTH = 0x200
    AUTH_PIN_FLAGS = 0x201
    ALWAYS_AUTHENTICATE = 0x202
    WRAP_WITH_TRUSTED = 0x210
    HW_FEATURE_TYPE = 0x300
    RESET_ON_INIT = 0x301
    HAS_RESET = 0x302
    PIXEL_X = 0x400
    PIXEL_Y = 0x401
    RESOLUTION = 0x402
    CHAR_ROWS = 0x403
    CHAR_COLUMNS = 0x404
    COLOR = 0x405
    BITS_PER_PIXEL = 0x406
    MECHANISM_TYPE = 0x500
    WRAP_TEMPLATE = 0x40000211
    UNWRAP_TEMPLATE = 0x40000212
    DERIVE_TEMPLATE = 0x40000213
    ALLOWED_MECHANISMS = 0x40000600


class Ckm(IntEnum):
    """Mechanisms (acm.md §5.2), and OAEP."""

    RSA_PKCS = 0x1
    RSA_X_509 = 0x3
    SHA1_RSA_PKCS = 0x6
    RSA_PKCS_OAEP = 0x9
    RSA_PKCS_PSS = 0xD
    SHA1_RSA_PKCS_PSS = 0xE
    SHA256_RSA_PKCS = 0x40
    SHA384_RSA_PKCS = 0x41
    SHA512_RSA_PKCS = 0x42
    SHA256_RSA_PKCS_PSS = 0x43
    SHA384_RSA_PKCS_PSS = 0x44
    SHA512_RSA_PKCS_PSS = 0x45
    SHA224_RSA_PKCS = 0x46
    SHA224_RSA_PKCS_PSS = 0x47
    SHA_1 = 0x220
    SHA256 = 0x250
    SHA224 = 0x255
    SHA384 = 0x260
    SHA512 = 0x270
    ECDSA = 0x1041
    ECDSA_SHA1 = 0x1042
    ECDSA_SHA224 = 0x1043
    ECDSA_SHA256 = 0x1044
    ECDSA_SHA384 = 0x1045
    ECDSA_SHA512 = 0x1046


class Ckg(IntEnum):
    """Mask generation functions."""

    MGF1_SHA1 = 1
    MGF1_SHA256 = 2
    MGF1_SHA384 = 3
    MGF1_SHA512 = 4
    MGF1_SHA224 = 5


class MechanismFlag(IntFlag):
    """CK_MECHANISM_INFO.flags."""

    HW = 0x1
    ENCRYPT = 0x100
    DECRYPT = 0x200
    DIGEST = 0x400
    SIGN = 0x800
    VERIFY = 0x2000
    EC_F_P = 0x100000
    EC_NAMEDCURVE = 0x800000
    EC_UNCOMPRESS = 0x1000000


class SlotFlag(IntFlag):
    """CK_SLOT_INFO.flags."""

    TOKEN_PRESENT = 0x1
    REMOVABLE_DEVICE = 0x2


class TokenFlag(IntFlag):
    """CK_TOKEN_INFO.flags."""

    RNG = 0x1
    WRITE_PROTECTED = 0x2
    LOGIN_REQUIRED = 0x4
    USER_PIN_INITIALIZED = 0x8
    TOKEN_INITIALIZED = 0x400
    SO_PIN_LOCKED = 0x400000


class SessionFlag(IntFlag):
    """CK_SESSION_INFO.flags."""

    RW = 0x2
    SERIAL = 0x4


class SessionState(IntEnum):
    """CK_SESSION_INFO.state; sessions are read-only here."""

    RO_PUBLIC = 0
    RO_USER = 1


class UserType(IntEnum):
    """Who logs in."""

    SO = 0
    USER = 1
    CONTEXT_SPECIFIC = 2


CKC_X_509: Final = 0
CATEGORY_TOKEN_USER: Final = 1
CATEGORY_AUTHORITY: Final = 2


class Refused(Exception):  # noqa: N818 - an answer to the client, not a fault of ours
    """The call ends with this return value."""

    def __init__(self, ckr: Ckr) -> None:
        super().__init__(f"CKR_{ckr.name}")
        self.ckr = ckr
