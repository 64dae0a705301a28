# PYTHON       the interpreter to make .venv with (3.11 or newer); by default the first suitable one found
# TORCH_INDEX  the index to take torch from, e.g. the CPU or CUDA index that pytorch.org shows for your machine; remembered in .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?= $(shell cat .venv/torch-index 2>/dev/null)

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# one process per core; compiled modules are kept, also where the environment says otherwise: hundreds of files are imported in each process
TEST := env -u PYTHONDONTWRITEBYTECODE $(PY) -m pytest -q
INSTALLED := .venv/installed-$(shell printf '%s' '$(TORCH_INDEX)' | cksum | cut -d' ' -f1)
PEERS := $(INSTALLED)-peers

.DEFAULT_GOAL := help
.PHONY: help install demo test check test-peer test-slow bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv and install what constraints.txt pins (again only when that changed)

demo: $(INSTALLED) ## train the laptop recipe on CPU, from corpus to report; resumes an unfinished run
	@.venv/bin/rorqual run laptop

test: $(INSTALLED) ## run the tests
	@$(TEST) -n auto --dist worksteal

check: $(INSTALLED) ## lint, formatting, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test-peer: $(PEERS) ## install the extras `hf` and `peers`, compare with transformers and other peers
	@$(TEST) -n auto --dist loadfile -m peer

test-slow: $(PEERS) ## the tests that take minutes, without the shape checks
	@$(TEST) -m slow --no-shapes --timeout=3600

bench: $(PEERS) ## print the benchmarks' figures, one JSON object a line
	@for config in nano micro; do $(PY) benchmarks/train.py --config $$config --peer transformers || exit 1; done
	@$(PY) benchmarks/experts.py
	@$(PY) benchmarks/startup.py
	@$(PY) benchmarks/checkpoints.py

clean: ## remove .venv, caches and build products; runs/ stays
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find rorqual tests benchmarks -name __pycache__ -type d -exec rm -rf {} +

.venv/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v "$(PYTHON)" >/dev/null || { echo "PYTHON=$(PYTHON) was not found; name an interpreter of 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "PYTHON=$(PYTHON) is `"$(PYTHON)" --version 2>&1`; Rorqual needs 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; exit 1; }

$(INSTALLED): constraints.txt pyproject.toml | .venv/pyvenv.cfg
	@echo "Installing what constraints.txt pins into .venv; the first time this downloads some hundred MB."
	@rm -f .venv/installed-*
	@if [ -n "$(TORCH_INDEX)" ] && [ "$(TORCH_INDEX)" != "`cat .venv/torch-index 2>/dev/null`" ]; then $(PIP) uninstall --quiet --yes torch; \
		$(PIP) install --index-url "$(TORCH_INDEX)" "`grep '^torch==' constraints.txt`"; fi
	$(PIP) install -c constraints.txt -e '.[dev]'
	@printf '%s' '$(TORCH_INDEX)' > .venv/torch-index
	@touch $@

$(PEERS): $(INSTALLED)
	$(PIP) install -c constraints.txt -e '.[dev,hf,official-tokenizer,peers]'
	@touch $@
