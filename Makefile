# make demo: set up and run the main job on a real model.  make test: set up and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := hambench methods kernels suites reports tests
WORKERS ?= 2
SIZE ?= --budget 4m
# one process a core; a file's tests stay together, because they share what is slow to make
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# bytecode is kept once a module was imported, but not made for the most that never is: the tests start many processes
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup browser demo test test-fast sanitize sanitize-threads test-without-compiler check format types gate clean
.DEFAULT_GOAL := help

help:
	@sed -n '1p' Makefile; echo "also: setup, test-fast, sanitize, sanitize-threads, test-without-compiler, check (ruff, format, mypy), format, types, clean"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	@touch $@

setup: $(STAMP)

demo: setup
	$(BIN)/hambench run --methods all --suite longbench $(SIZE)

# Chromium for the report's tests, where it can be had: the script says what it installs
browser: setup
	@scripts/install_browser.sh

test: setup browser
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow and not browser"

# the native engine's tests once more, on a build that checks every access and every undefined operation
sanitize: setup
	runtime="$$($(BIN)/python -P tests/sanitizer_runtime.py)" || exit 1; LD_PRELOAD="$$runtime" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc HAMBENCH_TEST_SANITIZERS=address,undefined \
	timeout 600 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q -m "not model" -k "not portable" --timeout 600 \
	tests/kernels/cpu/test_native_model.py tests/engine/cpu tests/engine/test_together.py \
	tests/methods/hamburger/device/test_native_step.py

# the native engine's pool of threads under ThreadSanitizer, in a program of its own
sanitize-threads: setup
	HAMBENCH_TEST_SANITIZERS=thread timeout 600 $(BIN)/python -m pytest -n 0 -q --timeout 600 tests/kernels/cpu/test_pool.py

# what a machine without a C++ compiler runs: torch's operations, said once (the methods' laws on these are in `test`)
test-without-compiler: setup
	CXX=none timeout 600 $(PYTEST) -q tests/runner/test_backend.py tests/engine/cpu tests/kernels/cpu \
	tests/test_doctor.py tests/bench/test_engine.py tests/cli/test_cli.py

check: setup types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# the counts of this code against the committed ones: an id, a forward or a byte more fails
gate: setup
	$(BIN)/hambench gate --only exact

format: setup
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# the five folders are one package: mypy follows a tree of links that looks like site-packages
types: setup
	@rm -rf build/types && mkdir -p build/types/hambench
	@ln -s $(CURDIR)/hambench/* build/types/hambench/
	@for folder in methods kernels suites reports; do ln -s $(CURDIR)/$$folder build/types/hambench/$$folder; done
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p hambench

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
