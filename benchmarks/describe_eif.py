"""`describe-eif` against `openssl dgst -sha384` over the same file: time, memory, bytes read.

Both find the file in the page cache, so what is compared is work, not the disk. openssl hashes each byte once, on one
core; describe-eif hashes it twice (PCR0, and PCR1 or PCR2) and sums it (CRC), on two.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import MIB, Report, at_most, command, main, measure, note, ratios
from benchmarks.images import apart, write_image
from benchmarks.process import FailedError, run

_PROGRAM = str(Path(sys.executable).parent / "nitro-cli")
_SMALL = 64  # MiB: the image whose memory the large one is held against


def benchmark(arguments: argparse.Namespace) -> Report:
    """Describe an image and digest it, in turn."""
    with tempfile.TemporaryDirectory(prefix="alcove-bench-", dir=arguments.dir) as directory:
        large, small = Path(directory) / "large.eif", Path(directory) / "small.eif"
        note(f"writing an image of {arguments.size} MiB")
        apart(write_image, large, arguments.size * MIB)
        apart(write_image, small, _SMALL * MIB)
        size = large.stat().st_size
        ours = [_PROGRAM, "describe-eif", "--eif-path"]
        cases = (
            command("describe-eif", [*ours, str(large)], size=size),
            command("openssl dgst -sha384", ["openssl", "dgst", "-sha384", str(large)], size=size),
        )
        for case in cases:  # the page cache is warm, and the answer right
            _check(case.once().output)
        describe, openssl = measure(cases, arguments.rounds)
        sampled = {path.stat().st_size: run([*ours, str(path)], sample=True) for path in (small, large)}
    little, much = sampled.values()
    rows = [
        {
            "image MiB": length // MIB,
            "peak MiB": round(cost.memory / MIB),
            "bytes read / size": round(cost.read / length, 3),
        }
        for length, cost in sampled.items()
    ]
    pairs = sorted(ratios(describe, openssl))
    promises = (
        at_most("time against openssl, best of each", describe.best / openssl.best, 1.2),
        at_most("bytes read / size of the image (one read)", much.read / size, 1.01),
        at_most(f"peak memory against that of an image of {_SMALL} MiB", much.memory / little.memory, 1.1),
    )
    remarks = [f"Time against openssl in each round: {', '.join(f'{pair:.2f}' for pair in pairs)}."]
    return Report([describe, openssl], promises, {"memory and reading": rows}, remarks)


def _check(output: bytes) -> None:
    """The image is whole, if this is describe-eif's output."""
    if output.startswith(b"{") and json.loads(output)["CheckCRC"] is not True:
        raise FailedError("describe-eif says that the checksum of a sound image is wrong")


def options(parser: argparse.ArgumentParser) -> None:
    """Size and place."""
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of the image; 2048 when not given")
    parser.add_argument("--dir", metavar="DIR", help="where the image goes; the system's temporary directory")


if __name__ == "__main__":
    sys.exit(main("describe_eif", __doc__ or "", benchmark, options))
