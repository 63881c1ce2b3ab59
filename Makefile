# One command for everything. `make demo` and `make test` need only Python 3.11+, Rust and a C compiler: they set up the rest.
# The virtual environment is .venv; stamp files in it say what has been done, so nothing is built twice.

PYTHON ?= python3
CARGO ?= cargo
VENV := .venv
BIN := $(VENV)/bin
# One profile for the extension, the Rust tests and clippy: on two cores compiling the dependencies twice costs more than optimising.
PROFILE := --release
RUST := $(shell find rust/core rust/py -name '*.rs' -o -name Cargo.toml 2>/dev/null) Cargo.toml Cargo.lock
TARGET ?=
TIME ?= 60
SANITIZER ?= address
FUZZ_ARGS ?=
COVERAGE ?= wire,page,recv
LOOM_MODEL ?=
LOOM_PREEMPTIONS ?= 3
BENCH ?= precopy
BENCH_ARGS ?=
CUTS_ARGS ?=
PYTEST_ARGS ?=
MINUTES ?= 30
SOAK_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv build dev test test-rust test-python test-long lint lint-rust lint-python fmt demo bench docs fuzz fuzz-smoke fuzz-python coverage cuts doctor pin clean soak asan tsan miri loom

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.pinned ## .venv with the pinned Python tools

$(VENV)/.pinned: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Say which one: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "No virtual environment: on Debian, apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@

build: $(VENV)/.built ## The extension, optimised, installed in .venv (only if Rust sources changed)

$(VENV)/.built: $(VENV)/.pinned $(RUST) pyproject.toml
	@command -v $(CARGO) >/dev/null || { echo "Rust 1.89 or newer is needed (cargo is not on PATH): https://rustup.rs"; exit 1; }
	@command -v cc >/dev/null || { echo "A C compiler is needed to link (cc is not on PATH): on Debian, apt install gcc libc6-dev"; exit 1; }
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop $(PROFILE) --locked --quiet
	@touch $@

dev: build ## Everything a developer needs, then how to go on
	@echo "Ready. source $(BIN)/activate; tests: make test, or pytest tests/unit; checks: make lint; formatting: make fmt"

test: test-rust test-python ## All tests that end within minutes (QEMU's are skipped, and say so, where it is not installed)

test-rust:
	$(CARGO) test $(PROFILE) --locked --quiet -p qmig-core

test-python: build
	$(BIN)/pytest -m "not long" $(PYTEST_ARGS)

test-long: build fuzz-smoke loom ## The tests that take longer
	$(BIN)/pytest -m long --timeout 1800 $(PYTEST_ARGS)

soak: build ## Two processes, one busy machine, back and forth (MINUTES=30, SOAK_ARGS="--seed 1 --json out.json"); see docs/how-to/long-checks.md
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES) $(SOAK_ARGS)

asan: ## The Rust tests under AddressSanitizer
	@tools/sanitize address

tsan: ## The Rust tests under ThreadSanitizer (needs a nightly with rust-src; says so)
	@tools/sanitize thread

miri: ## The parts of the core without system calls under Miri (needs a nightly with miri; says so)
	@tools/sanitize miri

loom: ## Every interleaving of the commit word, the bitmaps and the placers (LOOM_MODEL=fate: only those)
	cd rust/loom && LOOM_MAX_PREEMPTIONS=$(LOOM_PREEMPTIONS) $(CARGO) run --release --locked --quiet -- $(LOOM_MODEL)

lint: lint-rust lint-python ## Formatting, clippy, ruff, mypy, stub against module, unsafe only where it may stand

lint-rust:
	$(CARGO) fmt --all --check
	cd rust/loom && $(CARGO) fmt --check
	$(CARGO) clippy $(PROFILE) --locked --quiet --workspace --all-targets -- -D warnings
	tools/check-unsafe

lint-python: build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/stubtest qmig_e2k._core --allowlist tools/stubtest-allowlist.txt

fmt: venv ## Format Rust and Python
	$(CARGO) fmt --all
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

demo: build ## Move a busy machine there by precopy and back by postcopy, verified
	$(BIN)/qmig-e2k demo

bench: build ## Measure against QEMU and a bare loop (BENCH=precopy, BENCH_ARGS="--runs 9 --json out.json")
	$(CARGO) build $(PROFILE) --locked --quiet -p qmig-core --examples
	$(BIN)/qmig-e2k bench $(BENCH) --programs target/release/examples $(BENCH_ARGS)

docs: build $(VENV)/.docs ## The manual as HTML in docs/_build
	$(BIN)/sphinx-build --fail-on-warning --quiet -b html docs docs/_build
	@echo "docs/_build/index.html"

$(VENV)/.docs: requirements/docs.txt $(VENV)/.pinned
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/docs.txt -c requirements/dev.txt
	@touch $@

fuzz: ## Fuzz the decoders (TARGET=stream or none for all, TIME=60 seconds each, SANITIZER=address|none); see docs/how-to/fuzz.md
	$(PYTHON) fuzz/run.py $(TARGET) --seconds $(TIME) --sanitizer $(SANITIZER) $(FUZZ_ARGS)

fuzz-smoke: ## Every fuzz target for 20 seconds (TIME=20), without a sanitizer
	$(PYTHON) fuzz/run.py --seconds $(if $(filter file,$(origin TIME)),20,$(TIME)) --sanitizer none $(FUZZ_ARGS)

coverage: ## Lines of the core that the Rust tests and the fuzz corpora reach (COVERAGE=wire,page,recv)
	tools/coverage $(COVERAGE)

cuts: build ## Cut every wire of a migration at every byte; hours (CUTS_ARGS="--modes tls --pages 100 --json out.json")
	PYTHONPATH=tests $(BIN)/python -m campaign $(CUTS_ARGS)

fuzz-python: build ## Fuzz what is written in Python (TARGET=vmstate|description|qmp|hmp TIME=60); guided where atheris is installed
	$(BIN)/python fuzz/python/run.py $(or $(TARGET),vmstate) --time $(or $(TIME),60)

doctor: build ## What the kernel and the permissions allow here
	$(BIN)/qmig-e2k doctor

pin: ## Resolve the newest tools again and write them to requirements/
	tools/pin-requirements $(PYTHON)

clean: ## Remove what was built
	rm -rf $(VENV) target fuzz/target docs/_build docs/reference/_command-line.txt dist .pytest_cache .mypy_cache .ruff_cache .hypothesis python/qmig_e2k/*.so
	find python tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
