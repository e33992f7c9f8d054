"""Builds an image as a user: `build_as.py UID CONTEXT BLOBS OUTPUT NAME`; the measurements go to standard output.

Everything is imported before the user is left, as the interpreter may be out of the other user's reach.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from alcove.image.blobs import Blobs
from alcove.image.build import BuildRequest, build_enclave


def main() -> None:
    uid, context, blobs, output, name = sys.argv[1:]
    if os.getuid() != int(uid):
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    request = BuildRequest(
        docker_uri=name,
        docker_dir=Path(context),
        output_file=Path(output),
        blobs=Blobs.from_directory(Path(blobs)),
        work_dir=Path(output).parent,
    )
    measurements = build_enclave(request, lambda line: sys.stderr.write(f"{line}\n"))
    sys.stdout.write(json.dumps(measurements.to_json()))


main()
