"""Vectors of whole images that can be read (eif.md §1, §2, §6): sound ones and tolerated ones."""

from __future__ import annotations

from vectors.collection import Collection, Fields
from vectors.eif import keys
from vectors.eif.layout import (
    BODY,
    CMDLINE,
    CRC,
    KERNEL,
    METADATA,
    OFFSETS,
    PLAIN,
    RAMDISK,
    SIGNATURE,
    SIZES,
    Section,
    image,
    patched,
    registers,
    start,
    summed,
    table,
    u16,
    u64,
)

vector = Collection("image")
Made = tuple[bytes, Fields]
WHO = keys.Identity()
SMALL = (PLAIN[0], PLAIN[1], PLAIN[3])  # what version 2 has


def sound(sections: tuple[Section, ...] = PLAIN, data: bytes = b"", **other: object) -> Made:
    """An image that every reader takes, and what it must find there."""
    kinds = [kind for kind, _ in sections]
    version, flags, gap = (int(str(other.pop(name, default))) for name, default in _DEFAULTS.items())
    fields: Fields = {
        "expect": "sound",
        "version": version,
        "flags": f"{flags:#06x}",
        "architecture": ("x86_64", "aarch64")[flags & 1],
        "section": table(*sections, gap=gap),
        **registers(*sections),
        "crc": "right",
        "signature": "none",
        "metadata": "readable" if METADATA in kinds else "none",
        "at": keys.AT,
        "boot": "yes" if RAMDISK in kinds else "E35",
    }
    return data or image(*sections, version=version, flags=flags, gap=gap), fields | other


_DEFAULTS = {"version": 4, "flags": 0, "gap": 0}


def signed(who: keys.Identity = WHO, section: bytes = b"", **other: object) -> Made:
    """A sound image with a signature section: a good one of this signer's, or the data given."""
    section = section or keys.section(who, str(registers(*PLAIN)["pcr0"]))
    data, fields = sound((*PLAIN, (SIGNATURE, section)))
    return data, fields | {"pcr8": who.pcr8, "signature": "holds"} | other


def with_header(offset: int, value: bytes) -> bytes:
    """The plain image with other bytes in its header, and the checksum of what it now is."""
    return summed(patched(image(*PLAIN), offset, value))


@vector
def specification() -> Made:
    """The image of eif.md §5, which exercises layout, checksum and registers; its metadata lacks every key."""
    ramdisks = ((RAMDISK, b"ramdisk0"), (RAMDISK, b"ramdisk1"))
    sections = ((KERNEL, b"kernel"), (CMDLINE, b"cmdline"), (METADATA, b"{}"), *ramdisks)
    return sound(sections, metadata="unreadable", boot="E35", source="eif.md §5")


@vector
def version_2() -> Made:
    """Version 2 has neither metadata nor signature."""
    return sound(SMALL, version=2)


@vector
def version_3() -> Made:
    """Version 3 needs no metadata."""
    return sound(SMALL, version=3)


@vector
def version_3_signed() -> Made:
    """Version 3 brought the signature."""
    data = keys.section(WHO, str(registers(*SMALL)["pcr0"]))
    return sound((*SMALL, (SIGNATURE, data)), version=3, pcr8=WHO.pcr8, signature="holds")


@vector
def version_4() -> Made:
    """What nitro-cli writes today: kernel, command line, metadata, boot ramdisk, application ramdisk."""
    return sound()


@vector
def aarch64() -> Made:
    """Bit 0 of the flags says aarch64."""
    return sound(flags=1)


@vector
def flags_unknown() -> Made:
    """Flag bits 6 and 9, which Bottlerocket's builder sets: kept and reported."""
    return sound(flags=0x0240, expect="tolerated", field="flags", offset=6)


@vector
def reserved() -> Made:
    """The reserved field after the processors holds something, which no platform looks at."""
    return sound(data=with_header(0x18, u16(7)), expect="tolerated", field="reserved", offset=0x18)


@vector
def unused() -> Made:
    """The unused field before the checksum holds something, which no platform looks at."""
    return sound(data=with_header(0x21C, b"\0\0\0\1"), expect="tolerated", field="unused", offset=0x21C)


@vector
def entry_after_the_last() -> Made:
    """The arrays have an entry that the number of sections leaves out."""
    place = OFFSETS + 8 * 5
    return sound(data=with_header(place, u64(BODY)), expect="tolerated", field="section_offsets", offset=place)


@vector
def section_flags() -> Made:
    """A section header has flags, which the format reserves."""
    place = start(1, *PLAIN) + 2
    data = summed(patched(image(*PLAIN), place, u16(1)))
    return sound(data=data, expect="tolerated", field="flags", offset=place)


@vector
def memory_and_cpus() -> Made:
    """The default memory and processors are the largest numbers: nothing looks at them."""
    return sound(data=with_header(8, b"\xff" * 16))


@vector
def cmdline_first() -> Made:
    """The command line before the kernel: registers take sections in the order of the file."""
    return sound((PLAIN[1], PLAIN[0], *PLAIN[2:]))


@vector
def metadata_last() -> Made:
    """Any order is good in which ramdisks follow the kernel; Bottlerocket's is one."""
    return sound((PLAIN[0], PLAIN[1], *PLAIN[3:], PLAIN[2]))


@vector
def signature_first() -> Made:
    """A signature section before all others."""
    section = (SIGNATURE, keys.section(WHO, str(registers(*PLAIN)["pcr0"])))
    return sound((section, *PLAIN), pcr8=WHO.pcr8, signature="holds")


@vector
def one_ramdisk() -> Made:
    """With one ramdisk PCR2 measures nothing, and PCR0 equals PCR1."""
    return sound(PLAIN[:4])


@vector
def no_ramdisk() -> Made:
    """An image without a ramdisk is sound and cannot boot."""
    return sound(PLAIN[:3])


@vector
def empty_sections() -> Made:
    """Sections without data."""
    return sound(((KERNEL, b""), (CMDLINE, b""), PLAIN[2], (RAMDISK, b""), (RAMDISK, b"")))


@vector
def sections_32() -> Made:
    """As many sections as the header has room for."""
    return sound((*PLAIN[:3], *((RAMDISK, b"%d" % index) for index in range(29))))


@vector
def long_sections() -> Made:
    """Sections longer than any buffer, of lengths that are no round numbers."""
    sizes = ((RAMDISK, b"\x5a" * ((1 << 20) + 1)), (RAMDISK, b"\xa5" * (3 * (1 << 20) - 1)))
    return sound(((KERNEL, b"\x4b" * ((1 << 22) + 3)), *PLAIN[1:3], *sizes))


@vector
def crc_wrong() -> Made:
    """One bit of the stored checksum is wrong: described, not booted."""
    data = image(*PLAIN)
    return sound(data=patched(data, CRC, bytes([data[CRC] ^ 1])), crc="wrong", boot="E35")


@vector
def crc_after_a_changed_ramdisk() -> Made:
    """One bit of a ramdisk was changed: the checksum is wrong, and the registers are the changed image's."""
    changed = (*PLAIN[:4], (RAMDISK, b"ramdisk0"))
    return sound(changed, patched(image(*PLAIN), start(4, *PLAIN) + 19, b"0"), crc="wrong", boot="E35")


@vector
def gap() -> Made:
    """Bytes between header and first section: boots on the platform, and the checksum leaves them out."""
    return sound(gap=16, expect="tolerated", field="section_offsets[0]", offset=OFFSETS, boot="E35")


@vector
def trailing_bytes() -> Made:
    """Sixteen bytes after the last section, which the checksum leaves out."""
    data = image(*PLAIN)
    return sound(data=data + b"\xee" * 16, expect="tolerated", field="sections", offset=len(data), boot="E35")


@vector
def trailing_section_header() -> Made:
    """Half a section header after the last section: upstream's reader stops there in silence."""
    data = image(*PLAIN)
    return sound(data=data + b"\0\3\0\0\0\0", expect="tolerated", field="sections", offset=len(data), boot="E35")


@vector
def metadata_not_json() -> Made:
    """Structure and registers are sound; the metadata cannot be read."""
    return sound((*PLAIN[:2], (METADATA, b"{"), *PLAIN[3:]), metadata="unreadable", boot="E35")


@vector
def signed_p256() -> Made:
    """A signature of a key on P-256."""
    return signed(keys.Identity(-7))


@vector
def signed_p384() -> Made:
    """A signature of a key on P-384."""
    return signed(keys.Identity(-35))


@vector
def signed_p521() -> Made:
    """A signature of a key on P-521."""
    return signed(keys.Identity(-36))


@vector
def signed_expired() -> Made:
    """The certificate's time is over: the signature holds, the image does not boot."""
    return signed(keys.Identity(years=(2020, 2021)), boot="E59")


@vector
def signed_not_yet_valid() -> Made:
    """The certificate's time has not come."""
    return signed(keys.Identity(years=(2030, 2031)), boot="E59")


@vector
def signed_other_image() -> Made:
    """A good signature over the PCR0 of another image, which nitro-cli lets boot (eif.md §8 trap 6)."""
    return signed(WHO, keys.section(WHO, "11" * 48), signature="fails", boot="E59")


@vector
def signed_by_another_key() -> Made:
    """The certificate is not that of the key that signed."""
    register = str(registers(*PLAIN)["pcr0"])
    data = keys.section(keys.Identity(scalar=4), register, WHO.pem)
    return signed(section=data, signature="fails", boot="E59")


@vector
def signed_then_changed() -> Made:
    """A bit of a ramdisk was changed after signing, and the checksum put right: only the signature tells."""
    section = (SIGNATURE, keys.section(WHO, str(registers(*PLAIN)["pcr0"])))
    return sound((*PLAIN[:4], (RAMDISK, b"ramdisk0"), section), pcr8=WHO.pcr8, signature="fails", boot="E59")


@vector
def signature_not_cbor() -> Made:
    """A signature section that holds no signature."""
    return signed(section=b"signature", pcr8=None, signature="fails", boot="E35")


@vector
def signature_empty_array() -> Made:
    """An array of no signatures, whose first element upstream takes (eif.md §8 trap 4)."""
    return signed(section=b"\x80", pcr8=None, signature="fails", boot="E35")


@vector
def signature_of_32768_bytes() -> Made:
    """The longest signature section: line feeds before the certificate fill it."""
    register = str(registers(*PLAIN)["pcr0"])
    room = 32768 - len(keys.section(WHO, register))
    return signed(WHO, keys.section(WHO, register, b"\n" * room + WHO.pem))


@vector
def resigned_stale_size() -> Made:
    """The header's array has the size of an older signature, as nitro-cli leaves it (eif.md §8 trap 1)."""
    data, fields = signed()
    place = SIZES + 8 * 5
    stale = summed(patched(data, place, u64(1234)))
    return stale, fields | {"expect": "tolerated", "field": "section_sizes[5]", "offset": place}


@vector
def size_disagrees() -> Made:
    """The header's array says seven bytes of kernel, the section six: the section's own size is measured."""
    data = with_header(SIZES, u64(7))
    return sound(data=data, expect="tolerated", field="section_sizes[0]", offset=SIZES, boot="E35")


@vector
def metadata_missing() -> Made:
    """Version 4 without metadata."""
    return sound((*PLAIN[:2], *PLAIN[3:]), expect="tolerated", field="sections", offset=0x1A, boot="E35")
