"""Fakes that test suites may use, ours and others': each is a whole peer, not a mock.

For applications: `SimulatedNSM`, the security module; `LocalKms`, a KMS (it needs `alcove[host]`); and a pytest plug-in
with both, `alcove.testing.pytest_plugin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alcove.testing.local_kms import LocalKms
    from alcove.testing.simulated_nsm import SimulatedNSM

__all__ = ["LocalKms", "SimulatedNSM"]


def __getattr__(name: str) -> Any:
    """The public fakes, imported when they are asked for: pytest loads this package in every run."""
    if name == "SimulatedNSM":
        from alcove.testing.simulated_nsm import SimulatedNSM  # noqa: PLC0415

        return SimulatedNSM
    if name == "LocalKms":
        from alcove.testing.local_kms import LocalKms  # noqa: PLC0415

        return LocalKms
    raise AttributeError(name)
