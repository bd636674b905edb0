# Every target makes what it needs first; `make demo` and `make test` work on a fresh checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# These tests, and the cases of the field, wait more than they compute: more of them run at once than cores.
WAITING := tests/scenarios tests/loadtest

.PHONY: setup demo compare check test vllm bench lock clean

setup: $(STAMP)

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Seatcount needs Python 3.11 or newer; say which with: make PYTHON=python3.12"; exit 1; }
	@echo "Making $(VENV) from requirements.lock (once, about a minute) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@touch $@

demo: setup
	@$(BIN)/python -m scenarios.demo

compare: setup
	@$(BIN)/python -m scenarios.demo.compare

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not real" $(WAITING:%=--ignore %) --ignore tests/field -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "not real" $(WAITING) -n 4 --dist loadfile

# The real vLLM needs the machine for itself.
test: check
	$(BIN)/python -m pytest tests/field -n 5
	$(BIN)/python -m pytest -m real

vllm: setup
	@$(BIN)/python -m testing.vllm

bench: setup
	@$(BIN)/python -m benchmarks

# Renews requirements.lock after a change of pyproject.toml.
lock: setup
	$(BIN)/pip-compile --quiet --all-extras --allow-unsafe --generate-hashes --strip-extras \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options --no-header \
		--output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
