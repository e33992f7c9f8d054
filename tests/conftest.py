"""What holds for every test: no property is judged by the clock, for a loaded machine is no fault of the code.

Nor is the shell's umask: programs that tests run as other users read what the tests write.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

os.umask(0o022)

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
