.PHONY: setup demo test check
.NOTPARALLEL:

setup:
	@scripts/setup

demo: setup
	@.venv/bin/alcove demo

test:
	@scripts/setup --tests
	@.venv/bin/pytest

check:
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/pytest -q -m "not vm"
