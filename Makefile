# Everything starts from nothing: a bare Python 3.11 or newer and a clean clone. The
# environment is made once and made again only when what it consists of has changed.

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean
.SUFFIXES:

# make PYTHON=/path/to/python3 overrides the search.
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# Two processes; PYTEST_OPTIONS= runs the tests in one.
PYTEST_OPTIONS ?= -n 2

# More than one thread makes small molecules slower.
export OMP_NUM_THREADS := 1

help:
	@echo "make demo    relax, compare with DFT and run dynamics of CH2 with the shipped model"
	@echo "make test    lint, types and all tests"
	@echo "make lint    lint and types only"
	@echo "make clean   remove the environment and all caches"
	@echo "All set up .venv first where it is missing or out of date."

$(STAMP): pyproject.toml constraints.txt requirements-dev.txt
	@for candidate in $(CANDIDATES); do \
	  if $$candidate -c '$(IS_NEW_ENOUGH)' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "mlff needs Python 3.11 or newer; none of these is: $(CANDIDATES)." >&2; \
	  echo "Install one, or say where it is: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	echo "Setting up .venv with $$($$found --version), a few minutes ..."; \
	if ! $(BIN)/python -c '$(IS_NEW_ENOUGH)' 2>/dev/null; then \
	  rm -rf .venv; $$found -m venv .venv || { rm -rf .venv; exit 1; }; \
	fi
	$(PIP) -r requirements-dev.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/mlff demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest $(PYTEST_OPTIONS)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
