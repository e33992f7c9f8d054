"""Slots, sessions, logins, objects and attributes: PKCS#11's rules, and its return values."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from tests.unit.apps.acm_device import PIN, Peer, ec_key, refused, rsa_key, token

from alcove.apps.acm.client import MAX_SESSIONS, MAX_WRONG_PINS
from alcove.apps.acm.cryptoki import UNAVAILABLE, Cka, Ckm, Cko, Ckr, Refused
from alcove.apps.acm.mechanisms import Profile
from alcove.apps.acm.token import MAX_TOKENS, TTL_SECONDS, Slots
from alcove.apps.acm.values import Attribute, Mechanism, Room, Size
from alcove.errors import UsageError

ECDSA = Mechanism(Ckm.ECDSA)


class Clock:
    """Time that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slots(clock: Clock) -> Slots:
    """Slot 0 with an RSA and an EC key, slot 1 with an EC key."""
    made = Slots(clock)
    made.add(token("first", [rsa_key(), ec_key()], clock=clock))
    made.add(token("second", [ec_key()], clock=clock))
    return made


@pytest.fixture
def peer(slots: Slots) -> Peer:
    return Peer(slots)


def test_the_library_begins_and_ends(slots: Slots) -> None:
    """Nothing before C_Initialize, which takes the exact handshake, once; C_Finalize ends sessions and logins."""
    peer = Peer(slots, initialize=False)
    with refused(Ckr.CRYPTOKI_NOT_INITIALIZED):
        peer("C_GetInfo")
    with refused(Ckr.GENERAL_ERROR):
        peer("C_Initialize", b"PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-2", 0, b"\0")
    peer = Peer(slots)
    with refused(Ckr.CRYPTOKI_ALREADY_INITIALIZED):
        peer("C_Initialize", b"PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1", 0, b"\0")
    session = peer.opened()
    peer("C_Finalize")
    peer("C_Initialize", b"PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1", 0, b"\0")
    with refused(Ckr.SESSION_HANDLE_INVALID):
        peer("C_GetSessionInfo", session)
    assert peer("C_GetSessionInfo", peer.opened(pin=None))[1] == 0


def test_the_device_tells_what_it_is(peer: Peer) -> None:
    """acm.md §5.3: names padded with spaces, flags, limits in the right order, and no figures of memory."""
    assert peer("C_GetInfo")[:2] == ((2, 40), b"Amazon".ljust(32))
    assert peer("C_GetSlotInfo", 0)[0] == b"p11ne-slot".ljust(64)
    info = peer("C_GetTokenInfo", 1)
    assert info[:4] == (b"second".ljust(32), b"Amazon".ljust(32), b"p11ne-token".ljust(16), b"EVT01".ljust(16))
    assert info[4] & 0x40040E == 0x40040E  # initialized, write-protected, login required, SO locked
    assert info[5:15] == (MAX_SESSIONS, 0, 0, 0, 64, 4, *[UNAVAILABLE] * 4)
    with refused(Ckr.SLOT_ID_INVALID):
        peer("C_GetTokenInfo", 2)


def test_lists_are_given_by_size_first(peer: Peer) -> None:
    """Without room, or with too little, the number alone; with room the slots and mechanisms."""
    assert peer("C_GetSlotList", 1, None) == Size(2)
    assert peer("C_GetSlotList", 1, 1) == Size(2)
    assert peer("C_GetSlotList", 0, 5) == (0, 1)
    count = peer("C_GetMechanismList", 0, None).length
    assert len(peer("C_GetMechanismList", 0, count)) == count == 25


def test_the_full_profile_has_every_mechanism_of_aws(peer: Peer) -> None:
    """acm.md §5.2: all 24 with their flags and sizes, and OAEP."""
    flags = {kind: peer("C_GetMechanismInfo", 0, kind) for kind in peer("C_GetMechanismList", 0, 99)}
    assert flags.keys() == set(Ckm)
    assert flags[Ckm.RSA_PKCS] == flags[Ckm.RSA_X_509] == (1024, 8192, 0x2B01)
    assert flags[Ckm.SHA256_RSA_PKCS_PSS] == (1024, 8192, 0x2801)
    assert flags[Ckm.ECDSA_SHA384] == (224, 521, 0x1902801)
    assert flags[Ckm.SHA512] == (0, 0, 0x401)
    with refused(Ckr.MECHANISM_INVALID):
        peer("C_GetMechanismInfo", 0, 0x1087)


def test_the_tls_profile_signs_and_no_more(clock: Clock) -> None:
    """No decryption, no raw RSA, no SHA-1 in signatures; digests are harmless."""
    slots = Slots(clock)
    slots.add(token("t", [rsa_key()], clock=clock, profile=Profile.TLS))
    peer = Peer(slots)
    kinds = peer("C_GetMechanismList", 0, 99)
    assert not {Ckm.RSA_X_509, Ckm.RSA_PKCS_OAEP, Ckm.SHA1_RSA_PKCS, Ckm.ECDSA_SHA224} & set(kinds)
    assert {Ckm.RSA_PKCS, Ckm.RSA_PKCS_PSS, Ckm.ECDSA, Ckm.SHA_1} <= set(kinds)
    assert peer("C_GetMechanismInfo", 0, Ckm.RSA_PKCS)[2] == 0x2801
    session = peer.opened()
    private = peer.key(session, Cko.PRIVATE_KEY)
    with refused(Ckr.KEY_FUNCTION_NOT_PERMITTED):
        peer("C_DecryptInit", session, Mechanism(Ckm.RSA_PKCS), private)
    peer("C_SignInit", session, Mechanism(Ckm.RSA_PKCS), private)
    with refused(Ckr.DATA_INVALID):  # no DigestInfo: nothing that TLS would have signed
        peer("C_Sign", session, b"x" * 36, 512)


def test_sessions_are_serial_and_read_only(peer: Peer) -> None:
    """acm.md §5.3: without CKF_SERIAL_SESSION, with CKF_RW_SESSION, or beyond 1024 there is none."""
    with refused(Ckr.SESSION_PARALLEL_NOT_SUPPORTED):
        peer("C_OpenSession", 0, 0)
    with refused(Ckr.TOKEN_WRITE_PROTECTED):
        peer("C_OpenSession", 0, 6)
    with refused(Ckr.SLOT_ID_INVALID):
        peer("C_OpenSession", 7, 4)
    handles = [peer("C_OpenSession", 0, 4) for _ in range(MAX_SESSIONS)]
    assert 0 not in handles  # PKCS#11: an invalid handle
    with refused(Ckr.SESSION_COUNT):
        peer("C_OpenSession", 0, 4)
    peer("C_CloseAllSessions", 0)
    assert peer("C_OpenSession", 0, 4)


def test_a_login_is_for_one_token_and_all_its_sessions(peer: Peer) -> None:
    """States change for every session on the token, and for no other token; the last session's end is a logout."""
    one, other, elsewhere = peer.opened(pin=None), peer.opened(pin=None), peer.opened(1, pin=None)
    peer("C_Login", one, 1, PIN)
    assert [peer("C_GetSessionInfo", each)[1] for each in (one, other, elsewhere)] == [1, 1, 0]
    with refused(Ckr.USER_ALREADY_LOGGED_IN):
        peer("C_Login", other, 1, PIN)
    peer("C_CloseSession", one)
    assert peer("C_GetSessionInfo", other) == (0, 1, 4, 0)
    peer("C_CloseSession", other)
    again = peer.opened(pin=None)
    assert peer("C_GetSessionInfo", again)[1] == 0
    peer("C_Login", again, 1, PIN)
    peer("C_Logout", again)
    with refused(Ckr.USER_NOT_LOGGED_IN):
        peer("C_Logout", again)


@pytest.mark.parametrize("pin", [b"", b"12345", b"1234567", b"123457", None, Size(6)])
def test_a_wrong_pin_is_refused(peer: Peer, pin: Any) -> None:
    """Shorter, longer, other, missing: always the same answer, and the private keys stay hidden."""
    session = peer.opened(pin=None)
    with refused(Ckr.PIN_INCORRECT):
        peer("C_Login", session, 1, pin)
    assert not peer.find(session, Attribute(Cka.CLASS, int(Cko.PRIVATE_KEY)))


def test_a_connection_that_guesses_is_locked_out_alone(slots: Slots) -> None:
    """After 16 wrong PINs the right one is refused on that connection, and taken on another."""
    guesser = Peer(slots)
    session = guesser.opened(pin=None)
    for _ in range(MAX_WRONG_PINS):
        with refused(Ckr.PIN_INCORRECT):
            guesser("C_Login", session, 1, b"0000")
    with refused(Ckr.PIN_LOCKED):
        guesser("C_Login", session, 1, PIN)
    Peer(slots).opened()


@pytest.mark.parametrize(("user", "ckr"), [(0, Ckr.SESSION_READ_ONLY_EXISTS), (2, Ckr.USER_TYPE_INVALID)])
def test_only_the_user_logs_in(peer: Peer, user: int, ckr: Ckr) -> None:
    """acm.md §5.3: neither the security officer nor a login for one operation."""
    with refused(ckr):
        peer("C_Login", peer.opened(pin=None), user, PIN)


def test_searches_find_what_matches(peer: Peer) -> None:
    """By class, id, label and all of them; nothing for an attribute that is not there; mechanisms when named."""
    session = peer.opened()
    assert len(peer.find(session)) == 6
    assert 0 not in peer.find(session)
    assert len(peer.find(session, Attribute(Cka.ID, b"\1"))) == 3
    assert len(peer.find(session, Attribute(Cka.ID, b"\1"), Attribute(Cka.LABEL, b"key1"))) == 2
    assert not peer.find(session, Attribute(0x10, b""))
    assert not peer.find(session, Attribute(Cka.PRIVATE_EXPONENT, b""))
    assert not peer.find(session, Attribute(Cka.LABEL, None))
    assert len(peer.find(session, Attribute(Cka.CLASS, int(Cko.MECHANISM)))) == 25


def test_private_objects_need_a_login(peer: Peer) -> None:
    """Without one they are neither found, nor read by their handle, nor signed with."""
    inside = peer.opened()
    private = peer.key(inside, Cko.PRIVATE_KEY)
    peer("C_Logout", inside)
    assert len(peer.find(inside)) == 4
    with refused(Ckr.OBJECT_HANDLE_INVALID):
        peer("C_GetAttributeValue", inside, private, (Room(Cka.LABEL, 9),))
    with refused(Ckr.USER_NOT_LOGGED_IN):
        peer("C_SignInit", inside, Mechanism(Ckm.SHA256_RSA_PKCS), private)


def test_a_logout_ends_the_use_of_a_key(peer: Peer) -> None:
    """A signature that was begun before the logout is not made after it."""
    session = peer.opened()
    peer("C_SignInit", session, Mechanism(Ckm.SHA256_RSA_PKCS), peer.key(session, Cko.PRIVATE_KEY))
    peer("C_Logout", session)
    with refused(Ckr.USER_NOT_LOGGED_IN):
        peer("C_Sign", session, b"data", 512)


def test_attributes_are_told_as_far_as_they_can_be(peer: Peer) -> None:
    """In their order: value, length for a size query, −1 for what is secret, unknown or too long."""
    session = peer.opened()
    private = peer.key(session, Cko.PRIVATE_KEY)
    rooms = (Room(Cka.KEY_TYPE, 8), Room(Cka.LABEL, None), Room(Cka.SENSITIVE, 1))
    found, ckr = peer("C_GetAttributeValue", session, private, rooms)
    assert (found, ckr) == ((Attribute(Cka.KEY_TYPE, 0), Attribute(Cka.LABEL, Size(4)), Attribute(Cka.SENSITIVE, 1)), 0)
    for room, problem in (
        (Room(Cka.PRIVATE_EXPONENT, 512), Ckr.ATTRIBUTE_SENSITIVE),
        (Room(Cka.PRIME_1, None), Ckr.ATTRIBUTE_SENSITIVE),
        (Room(Cka.EC_POINT, 99), Ckr.ATTRIBUTE_TYPE_INVALID),
        (Room(Cka.MODULUS, 255), Ckr.BUFFER_TOO_SMALL),
    ):
        found, ckr = peer("C_GetAttributeValue", session, private, (room, Room(Cka.SIGN, 1)))
        assert (found, ckr) == ((Attribute(room.type, None), Attribute(Cka.SIGN, 1)), problem)
    for handle in (0, 99, 1 << 63):
        with refused(Ckr.OBJECT_HANDLE_INVALID):
            peer("C_GetAttributeValue", session, handle, rooms)
    assert peer("C_GetObjectSize", session, private) > 256


def test_no_attribute_of_any_object_holds_the_private_key(peer: Peer) -> None:
    """Every attribute number up to 0x700, on every object: not d, p, q, their like, or the EC scalar."""
    rsa_numbers, ec_numbers = rsa_key().private.private_numbers(), ec_key().private.private_numbers()
    secrets = [rsa_numbers.d, rsa_numbers.p, rsa_numbers.q, rsa_numbers.dmp1, rsa_numbers.dmq1, rsa_numbers.iqmp]  # type: ignore[union-attr]
    needles = [number.to_bytes((number.bit_length() + 7) // 8) for number in [*secrets, ec_numbers.private_value]]  # type: ignore[union-attr]
    session = peer.opened()
    told = b""
    for handle in peer.find(session):
        for first in range(0, 0x700, 0x80):
            rooms = tuple(Room(kind, 4096) for kind in range(first, first + 0x80))
            for attribute in peer("C_GetAttributeValue", session, handle, rooms)[0]:
                told += attribute.value if isinstance(attribute.value, bytes) else b""
    assert rsa_numbers.public_numbers.n.to_bytes(256) in told  # type: ignore[union-attr]
    assert not [needle for needle in needles if needle in told]


def test_everything_that_changes_a_token_is_not_supported(peer: Peer) -> None:
    """acm.md §5.1: objects cannot be made, copied, changed or destroyed, keys not generated, wrapped or derived."""
    session = peer.opened()
    for name, arguments in {
        "C_CreateObject": (session, ()),
        "C_CopyObject": (session, 1, ()),
        "C_DestroyObject": (session, 1),
        "C_SetAttributeValue": (session, 1, ()),
        "C_GenerateKeyPair": (session, ECDSA, (), ()),
        "C_WrapKey": (session, ECDSA, 1, 1, 99),
        "C_DeriveKey": (session, ECDSA, 1, ()),
        "C_InitPIN": (session, b"1234"),
        "C_SetPIN": (session, b"1234", b"1234"),
        "C_SeedRandom": (session, b"seed"),
        "C_WaitForSlotEvent": (1,),
    }.items():
        with refused(Ckr.FUNCTION_NOT_SUPPORTED):
            peer(name, *arguments)


def test_random_bytes_are_given_to_a_session(peer: Peer) -> None:
    """As many as asked for; not without a session, and not without end."""
    session = peer.opened(pin=None)
    assert len(peer("C_GenerateRandom", session, 8)) == 8
    with refused(Ckr.ARGUMENTS_BAD):
        peer("C_GenerateRandom", session, 1 << 20)
    with refused(Ckr.SESSION_HANDLE_INVALID):
        peer("C_GenerateRandom", 99, 8)


def test_more_than_512_keys_are_served(clock: Clock) -> None:
    """600 tokens of a key each, and a token of 255 keys: each is found in its slot, and signs."""
    slots = Slots(clock)
    for number in range(600):
        slots.add(token(f"t{number}", [ec_key()], clock=clock))
    slots.add(token("many", [ec_key()] * 255, clock=clock))
    peer = Peer(slots)
    assert len(peer("C_GetSlotList", 1, 4096)) == 601
    for slot, number in ((0, 1), (599, 1), (600, 255)):
        session = peer.opened(slot)
        peer("C_SignInit", session, ECDSA, peer.key(session, Cko.PRIVATE_KEY, number))
        assert len(peer("C_Sign", session, bytes(32), 512)) == 64
    assert slots.free() == MAX_TOKENS - 601


def test_a_token_that_is_not_refreshed_is_gone_after_48_hours(slots: Slots, clock: Clock) -> None:
    """acm.md §3: its slot is empty, and sessions that were open end; a refreshed one goes on."""
    peer = Peer(slots)
    old, kept = peer.opened(0), peer.opened(1)
    clock.now += TTL_SECONDS / 2
    slots.token(1).expires = clock.now + TTL_SECONDS
    clock.now += TTL_SECONDS / 2
    with refused(Ckr.DEVICE_REMOVED):
        peer("C_GetSessionInfo", old)
    assert peer("C_GetSessionInfo", kept)[1] == 1
    assert peer("C_GetSlotList", 1, 9) == (1,)


def test_sessions_on_a_token_that_was_replaced_go_on(slots: Slots, clock: Clock) -> None:
    """A web server's old workers sign with the old key; whoever opens a session now gets the new one."""
    old = Peer(slots)
    session = old.opened(1)
    handle = old.key(session, Cko.PRIVATE_KEY)
    slots.replace(1, token("second", [rsa_key()], clock=clock))
    old("C_SignInit", session, ECDSA, handle)
    assert len(old("C_Sign", session, bytes(32), 512)) == 64
    fresh = Peer(slots)
    opened = fresh.opened(1)
    with refused(Ckr.KEY_TYPE_INCONSISTENT):
        fresh("C_SignInit", opened, ECDSA, fresh.key(opened, Cko.PRIVATE_KEY))
    with refused(Ckr.KEY_HANDLE_INVALID):  # it never saw the old key
        fresh("C_SignInit", opened, ECDSA, handle)


def test_a_session_finds_what_took_its_token_s_place(slots: Slots, clock: Clock) -> None:
    """Replaced three times: it finds each new key under another handle, logged in as before, and uses all four."""
    peer = Peer(slots)
    session, keys = peer.opened(1), list[int]()
    for curve in (ec.SECP384R1, ec.SECP521R1, ec.SECP256R1):
        keys.append(peer.key(session, Cko.PRIVATE_KEY))
        slots.replace(1, token("second", [ec_key(curve)], clock=clock))
    keys.append(peer.key(session, Cko.PRIVATE_KEY))
    assert len(set(keys)) == 4
    for key in keys:
        peer("C_SignInit", session, ECDSA, key)
        assert len(peer("C_Sign", session, bytes(32), 512)) in (64, 96, 132)
    assert slots.token(1).uses == 4
    more = peer("C_OpenSession", 1, 4)
    assert peer("C_GetSessionInfo", more)[1] == 1  # the login holds for it, too
    slots.remove(1)
    for each in (session, more):
        with refused(Ckr.DEVICE_REMOVED):
            peer.find(each)


def test_an_object_keeps_its_handle(slots: Slots, clock: Clock) -> None:
    """A worker that was forked before a change has the handles of its master, and a session of its own after it."""
    master = Peer(slots)
    before = master.key(master.opened(1), Cko.PRIVATE_KEY)
    slots.replace(1, token("second", [ec_key(), ec_key(ec.SECP384R1)], clock=clock))
    worker = Peer(slots)
    session = worker.opened(1)
    worker("C_SignInit", session, ECDSA, before)
    raw = worker("C_Sign", session, bytes(range(32)), 512)
    signature = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    ec_key().public.verify(signature, bytes(range(32)), ec.ECDSA(Prehashed(hashes.SHA256())))  # type: ignore[call-arg, arg-type]
    assert before in worker.find(session, Attribute(Cka.CLASS, int(Cko.PRIVATE_KEY)))
    assert len(set(worker.find(session))) == len(worker.find(session))


def test_a_replaced_token_s_keys_have_the_rest_of_their_time(slots: Slots, clock: Clock) -> None:
    """After it the session goes on with the new key alone, which is refreshed."""
    peer = Peer(slots)
    session = peer.opened(1)
    before = peer.key(session, Cko.PRIVATE_KEY)
    clock.now += TTL_SECONDS / 2
    slots.replace(1, token("second", [ec_key(ec.SECP384R1)], clock=clock))
    after = peer.key(session, Cko.PRIVATE_KEY)
    clock.now += TTL_SECONDS / 2
    with refused(Ckr.KEY_HANDLE_INVALID):
        peer("C_SignInit", session, ECDSA, before)
    peer("C_SignInit", session, ECDSA, after)
    assert len(peer("C_Sign", session, bytes(32), 512)) == 96


def test_another_pin_s_token_is_not_seen(slots: Slots, clock: Clock) -> None:
    """Who was logged in to the one before is not to it."""
    peer = Peer(slots)
    session = peer.opened(1)
    key = peer.key(session, Cko.PRIVATE_KEY)
    other = token("second", [ec_key()], clock=clock)
    other.pin = b"another-pin"
    slots.replace(1, other)
    assert peer.key(session, Cko.PRIVATE_KEY) == key
    assert peer("C_GetSessionInfo", peer("C_OpenSession", 1, 4))[1] == 0


def test_a_token_that_was_removed_is_gone_for_everybody(slots: Slots) -> None:
    """Open sessions too, and only on that token."""
    peer = Peer(slots)
    gone, kept = peer.opened(0), peer.opened(1)
    slots.remove(0)
    with refused(Ckr.DEVICE_REMOVED):
        peer.find(gone)
    assert peer.find(kept)
    with refused(Ckr.SLOT_ID_INVALID):
        peer("C_OpenSession", 0, 4)


def test_labels_are_unique_and_slots_are_used_again(slots: Slots, clock: Clock) -> None:
    """Two tokens of one label cannot be; the first free slot is taken."""
    with pytest.raises(UsageError, match="there is a token second"):
        slots.add(token("second", [ec_key()], clock=clock))
    slots.remove(0)
    assert slots.add(token("third", [ec_key()], clock=clock)) == 0


def test_uses_are_counted_and_limited(clock: Clock) -> None:
    """Two a second, four at once: the fifth is refused, and after half a second there is one more."""
    slots = Slots(clock)
    slots.add(token("slow", [ec_key()], clock=clock, rate=2))
    peer = Peer(slots)
    session = peer.opened()
    private = peer.key(session, Cko.PRIVATE_KEY)

    def sign() -> bool:
        peer("C_SignInit", session, ECDSA, private)
        try:
            return len(peer("C_Sign", session, bytes(32), 64)) == 64
        except Refused as error:
            return error.ckr is not Ckr.FUNCTION_FAILED

    assert [sign() for _ in range(5)] == [True] * 4 + [False]
    clock.now += 0.5
    assert [sign(), sign()] == [True, False]
    assert slots.token(0).uses == 5
