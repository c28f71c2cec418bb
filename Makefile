# Two commands matter: `make demo` and `make test`. Both set up all they need (as root, on Debian
# 12 or 13) and may be run again at any time.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check bench protos setup clean

demo: setup
	tools/demo

test: setup check
	$(BIN)/python -m pytest -q

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/genapi.py --check
	$(BIN)/python -m pytest -q tests/style

bench: setup
	$(BIN)/python -m bench.rpc
	image=$$(PYTHONPATH=tests $(BIN)/python -m harness.debian) && $(BIN)/python -m bench --image "$$image"

protos: setup
	$(BIN)/python tools/genapi.py

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml tools/setup
	tools/setup "$(PYTHON)" "$(VENV)"
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
