"""The vectors' files: what the generators make, in the format that vectors/README.md describes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.conformance.corpus import VECTORS
from vectors import vectorfile
from vectors.collection import differences, texts
from vectors.eif.generate import COLLECTIONS, DIRECTORY
from vectors.vectorfile import Vector, VectorError, load

pytestmark = pytest.mark.slow

README = (VECTORS / "README.md").read_text()
PINNED = {  # eif.md §5, §7.2, §7.4: SHA-256 of the payload
    "image/specification": "3ebc153815324142d71199eb15db5d38681c4a1a44c3bf2ed65c2d45e878bbaa",
    "cpio/boot-ramdisk": "37787339eec5399d26a9bc470479c00989c80ecef3579f0012e05922bc322166",
    "cpio/application-ramdisk": "abba0148860efd6099bd69fcebe1fa12668c632204f70f85d1214802311c8e51",
}
PAYLOAD = (  # eif.md §3.2
    "a26e72656769737465725f696e646578006e72656769737465725f76616c75659830000102030405060708090a0b0c0d0e0f1011121314151617"
    "18181819181a181b181c181d181e181f1820182118221823182418251826182718281829182a182b182c182d182e182f"
)
SECTION = (
    "81a2737369676e696e675f6365727469666963617465983b182d182d182d182d182d1842184518471849184e1820184318451852185418491846"
    "18491843184118541845182d182d182d182d182d0a184d1849184918420a182d182d182d182d182d1845184e184418201843184518521854184918"
    "4618491843184118541845182d182d182d182d182d0a697369676e61747572658a18d21884184418a1011838182218a018401840"
)
REGISTERS = {  # eif.md §2, §5
    ("image/specification", "pcr0"): "9476662f525a28aa994c65883117bdacb3a0911961b455e0db6c85ff33269432"
    "fff9368094f6a413095e29bada04472e",
    ("image/one-ramdisk", "pcr2"): "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c"
    "10edb30948c90ba67310f7b964fc500a",
    ("measurement/of-a-role", "pcr"): "2eb6e4f69b5abfb9b5e67a4f72840d7acebb82c44dcdf2180be332323f78e792"
    "490712da5459de305eb388b9acd842c9",
    ("measurement/of-an-instance", "pcr"): "d6432900ac1c343cb40286898792c55e962aef0cc35c4910c0c286145b51af19"
    "e782cb21cc31a042671d7dfbd398251c",
}


def test_the_files_are_what_the_generators_make() -> None:
    """Every committed vector is made again, byte for byte, signatures included; none is missing or left over."""
    assert not differences(DIRECTORY, COLLECTIONS)


def test_generators_do_not_use_the_code_that_they_test() -> None:
    """No generator imports Alcove, so a mistake cannot be on both sides."""
    assert not [path for path in VECTORS.rglob("*.py") if "alcove" in path.read_text()]


def test_the_specifications_constants_come_out() -> None:
    """The image of 639 bytes, both CBOR vectors, both ramdisks and the registers are the specification's own."""
    cases = {vector.name: vector for vector in load(DIRECTORY)}
    assert {name: _sha256(cases[name]) for name in PINNED} == PINNED
    assert len(cases["image/specification"].payload) == 639
    assert cases["payload/specification"].payload.hex() == PAYLOAD
    assert cases["signature/specification-section"].payload.hex() == SECTION
    assert {place: cases[place[0]].get(place[1]) for place in REGISTERS} == REGISTERS


def _sha256(vector: Vector) -> str:
    return next(line.split()[1] for line in vector.format().splitlines() if line.startswith("sha256:"))


def test_every_vector_reads_back() -> None:
    """Parse and format are inverse for every file."""
    files = texts(COLLECTIONS)
    assert {f"{vector.name}.txt": vector.format() for vector in load(DIRECTORY)} == files


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("boot: E35", "boots: E35"),
        ("kind: image", "kind: unknown"),
        ("version: 4", "version: 4\nversion: 4"),
        ("expect: sound\n", ""),
        ("size: 639", "size: 638"),
        ("sha256: 3e", "sha256: 3f"),
        ("2e656966", "2e656967"),
        ("2e656966", "2e 656966"),
        ("00 * 223", "00 * 0"),
        ("00 * 223", "0 * 223"),
        ("0000026b", "0000026"),
    ],
)
def test_a_changed_file_is_no_vector(old: str, new: str) -> None:
    """An unknown or repeated key, a wrong sum or a line that is not payload is an error, never passed over."""
    text = (DIRECTORY / "image" / "specification.txt").read_text()
    assert old in text
    with pytest.raises(VectorError):
        Vector.parse("x", text.replace(old, new, 1))


def test_the_readme_explains_every_key() -> None:
    """No key is used that other implementers could not look up."""
    keys = vectorfile.COMMON.union(*vectorfile.KEYS.values())
    assert not [key for key in sorted(keys) if f"`{key}`" not in README]
    assert not [kind for kind in vectorfile.KEYS if f"`{kind}`" not in README]


def test_the_generator_says_what_differs(tmp_path: Path) -> None:
    """`--check` exits with 0 while files and generators agree."""
    argv = [sys.executable, "-m", "vectors.eif.generate", "--check"]
    done = subprocess.run(argv, cwd=VECTORS.parent, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.endswith(" 0 files differ\n")) == (0, True)
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "left-over.txt").write_text("")
    assert "image/left-over.txt" in differences(tmp_path, COLLECTIONS)
