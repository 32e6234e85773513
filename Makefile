# `make` alone lists the commands.

PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
BIN := $(VENV)/bin
# The tests of a file stay together, as they share its fixtures. Files begin in the order that tests/conftest.py gives
# them, not by how many tests they have.
SIDE_BY_SIDE = -n $(JOBS) --dist loadfile --no-loadscope-reorder
TIERS ?= unit wiring worker browser services
VERSIONS ?= 3.14 3.13 3.12
# Tests of real processes wait most of the time; the others compute all the time.
JOBS ?= $(if $(filter-out unit wiring,$(TIERS)),4,2)
ARGS ?=
# Hundreds of processes that tests start import the same modules: compile each once.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup system node demo pictures test versions fallback lint types bench check clean constraints

help: ## List these commands
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { gsub(/\$$\(VENV\)/, "$(VENV)"); printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO_VENV)/.installed ## Worker, monitor, Django site and traffic on this machine; CHECK=1 checks it unattended
	@PYTHONPATH=examples exec $(DEMO_VENV)/bin/python -m demo $(if $(filter-out 0,$(CHECK)),--check) $(ARGS)

pictures: setup ## Make the pictures of README.md anew, from a demo that runs for them (with Chromium)
	@PYTHONPATH=examples $(BIN)/python -m demo.pictures docs/pictures

test: setup system node ## All tests; TIERS="unit wiring" selects, ARGS="-k name" goes to pytest, JOBS=1
	$(BIN)/python -m pytest -rsx $(SIDE_BY_SIDE) $(addprefix tests/,$(TIERS)) $(ARGS)

versions: TIERS = unit wiring
versions: ## Unit and wiring tests on other Pythons; VERSIONS="3.14 3.13 3.12" names them
	@found=$$(scripts/other-pythons $(VERSIONS)); \
	[ -n "$$found" ] || echo "Of Python $(VERSIONS) there is none here: only $$($(PYTHON) --version) was tested."; \
	for python in $$found; do \
	    venv=.venv-$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "On $$($$python --version), in $$venv"; \
	    scripts/make-venv $$python $$venv -r requirements-dev.txt && \
	    $$venv/bin/python -m pytest $(SIDE_BY_SIDE) $(addprefix tests/,$(TIERS)) $(ARGS) || exit 1; \
	done

# Without CI, so that tests that need the extension module are skipped.
fallback: TIERS = unit wiring
fallback: setup ## Tests of the heap and of traced blocks without the extension module
	CI= TESTS_WITHOUT_EXTENSION=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(wildcard tests/*/test_heap_*.py) \
	    tests/wiring/test_blocks_trace_memory.py tests/wiring/test_tracers.py $(ARGS)

lint: setup node ## ruff, import-linter, and eslint if node is installed
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@if [ -d node_modules ]; then echo npm run lint; npm run --silent lint; fi

types: setup ## mypy, strict, on the three packages
	$(BIN)/mypy

bench: setup system ## Measure the overhead; writes docs/overhead.md
	$(BIN)/python -m benchmarks $(ARGS)

check: lint types test ## lint, types and test

setup: $(VENV)/.installed ## The virtual environment for all of the above

system: ## Install Chromium and the servers for the tests from Debian's packages (as root)
	@scripts/system-packages

node: ## Install the tools that check the pages' scripts (eslint, jsdom), if node is installed
	@scripts/node-packages

clean: ## Remove generated files; the virtual environment $(VENV) stays
	rm -f celery_trace/*/*.so $(VENV)*/.installed # the next command with $(VENV) rebuilds the extension
	rm -rf $(DEMO_VENV) node_modules .demo build dist .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

constraints: setup ## Write the versions of this virtual environment into constraints.txt
	@scripts/write-constraints $(BIN)/python

# The dependencies of a virtual environment, including the extension modules.
INSTALLED_FROM := pyproject.toml constraints.txt scripts/make-venv scripts/compiler $(wildcard celery_trace/*/*.c)

$(VENV)/.installed: $(INSTALLED_FROM) requirements-dev.txt requirements-beside.txt
	@scripts/make-venv $(PYTHON) $(VENV) --no-deps -r requirements-beside.txt
	@scripts/make-venv $(PYTHON) $(VENV) -r requirements-dev.txt

$(DEMO_VENV)/.installed: $(INSTALLED_FROM)
	@scripts/make-venv $(PYTHON) $(DEMO_VENV) -e '.[demo]'
