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
	@status=0; for file in $$(grep -l 'sys.exit(main(' benchmarks/*.py); do .venv/bin/python -m benchmarks.$$(basename $$file .py) || status=1; done; exit $$status
