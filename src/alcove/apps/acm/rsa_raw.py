"""RSA without padding, and PKCS#1 v1.5 blocks of the caller's own (RFC 8017 §5, §9.2): what `cryptography` does not do.

Only the profile "full" comes here with a private key. Python's `pow` does not take the same time for every number, so
the base is blinded by a random factor and each exponent by a random multiple of its order: what is measured says
nothing of the key. The result is checked, since one faulty answer by the Chinese remainders gives the key away.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import rsa

from alcove.apps.acm.cryptoki import Ckr, Refused

_BLIND_BYTES = 8


def size_of(key: rsa.RSAPublicKey | rsa.RSAPrivateKey) -> int:
    """Bytes of the modulus."""
    return (key.key_size + 7) // 8


def block_type_1(data: bytes, size: int) -> bytes:
    """00 01 FF…FF 00 data.

    Raises:
        Refused: The data is too long.
    """
    if len(data) > size - 11:
        raise Refused(Ckr.DATA_LEN_RANGE)
    return b"\x00\x01" + b"\xff" * (size - 3 - len(data)) + b"\x00" + data


def public_operation(key: rsa.RSAPublicKey, block: bytes) -> bytes:
    """block^e mod n, as long as the modulus.

    Raises:
        Refused: The block is too long, or no number below n.
    """
    numbers = key.public_numbers()
    return pow(_number(block, numbers.n), numbers.e, numbers.n).to_bytes(size_of(key))


def private_operation(key: rsa.RSAPrivateKey, block: bytes, random: Callable[[int], bytes]) -> bytes:
    """block^d mod n, as long as the modulus.

    Args:
        key: The key.
        block: A number below n.
        random: Makes as many unpredictable bytes as asked for.

    Raises:
        Refused: The block is too long, or no number below n; or the result was wrong.
    """
    numbers = key.private_numbers()
    n, e = numbers.public_numbers.n, numbers.public_numbers.e
    base = _number(block, n)
    factor = _invertible(n, random)
    blinded = base * pow(factor, e, n) % n
    p, q = numbers.p, numbers.q
    by_p = pow(blinded, numbers.dmp1 + _multiple(p, random), p)
    by_q = pow(blinded, numbers.dmq1 + _multiple(q, random), q)
    result = by_q + q * ((by_p - by_q) * numbers.iqmp % p)
    if pow(result, e, n) != blinded:
        raise Refused(Ckr.DEVICE_ERROR)
    return (result * pow(factor, -1, n) % n).to_bytes(size_of(key))


def _number(block: bytes, n: int) -> int:
    number = int.from_bytes(block)
    if len(block) > (n.bit_length() + 7) // 8:
        raise Refused(Ckr.DATA_LEN_RANGE)
    if number >= n:
        raise Refused(Ckr.DATA_INVALID)
    return number


def _invertible(n: int, random: Callable[[int], bytes]) -> int:
    while True:
        factor = int.from_bytes(random((n.bit_length() + 7) // 8 + _BLIND_BYTES)) % n
        if factor and math.gcd(factor, n) == 1:
            return factor


def _multiple(prime: int, random: Callable[[int], bytes]) -> int:
    return (prime - 1) * int.from_bytes(random(_BLIND_BYTES))
