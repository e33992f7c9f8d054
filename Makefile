.PHONY: setup demo test check bench
.NOTPARALLEL:

setup:
	@scripts/setup

demo: setup
	@.venv/bin/alcove demo

test:
	@scripts/setup --tests
	@.venv/bin/pytest

check:
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/pytest -q -m "not vm and not slow"

bench:
	@status=0; for name in describe_eif build_enclave attestation vsock_device vsock_guest; do .venv/bin/python -m benchmarks.$$name || status=1; done; exit $$status
