# The commands of this project; CI runs exactly these (.ci/run).
#
# Everything they make is in .venv/ and .state/, except for the extension's .c and .so. Stamp files
# in .venv record the set-up: to start afresh, remove .venv. A set-up with nothing to do takes a
# fraction of a second.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
# The rules install into the same .venv, so they run one after another, even with -j.
.NOTPARALLEL:

# The interpreter to build with; empty: the first of the usual names that is 3.11 or newer.
PYTHON ?=
# Arguments for pytest: make test ARGS='tests/test_tree.py -x'.
ARGS ?=
# Number of processes that run the tests: two per core, because a test on a real mount waits for half
# of its time; 1 with a store from the environment: it has one bucket.
WORKERS ?= $(if $(MOUNT_S3_TEST_ENDPOINT),1,$(shell n=$$(nproc); echo $$((n < 4 ? 2 * n : 8))))
# Factor by which `make soak` multiplies the number of random cases.
SOAK ?= 10
# Seconds that `make fuzz` takes for each target.
FUZZ_S ?= 60
# KEEP=1 leaves the demo mounted.
KEEP ?=

# Python keeps compiled modules, whatever the caller's environment says: the tests start the program
# many hundred times, and without them each start takes nearly twice as long.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
BIN := $(VENV)/bin
# Installs only the versions in constraints.txt.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
EXTENSION_SOURCES := setup.py $(shell find mountpoint -name '*.pyx' -o -name '*.pxd')

# If the checkout was moved, or its interpreter is gone, .venv does not work, because its scripts
# contain absolute paths. The stamp contains the path; if it differs, .venv is created again.
ifneq ($(shell $(BIN)/python -c '' 2>/dev/null && cat $(VENV)/.stamp-venv 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/.stamp-venv
endif

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: system-packages $(VENV)/.stamp-extension ## Install what is missing, make .venv, build

# Probes each time, in a tenth of a second: a stamp would not notice a removed package.
.PHONY: system-packages
system-packages:
	@tools/install-system-packages '$(PYTHON)'

$(VENV)/.stamp-venv: | system-packages
	@python=$$(tools/find-python '$(PYTHON)'); \
	echo "Making $(VENV) with $$python ($$($$python --version))"; \
	rm -rf $(VENV); $$python -m venv $(VENV); \
	printf '%s\n' '$(CURDIR)' > $@

# No build isolation: isolated builds (llfuse's and ours) would each download the newest setuptools
# and Cython. Here both are built with the versions in constraints.txt, which are installed first.
# So is pip, because that of Debian 12 does not support dependency groups.
$(VENV)/.stamp-packages: $(VENV)/.stamp-venv constraints.txt pyproject.toml
	@echo "Installing the locked packages and building (about a minute the first time)"
	$(PIP) pip setuptools Cython
	$(PIP) --no-build-isolation --group dev -e '.[otlp,prometheus]'
	@touch $@

# The editable install builds the extension in place. A change of its sources rebuilds only that.
$(VENV)/.stamp-extension: $(VENV)/.stamp-packages $(EXTENSION_SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

.PHONY: installed
installed:
	@[ -e $(VENV)/.stamp-packages ] || { echo "ruff and mypy are not installed: run make setup"; exit 1; }

.PHONY: demo
demo: setup ## Mount a bucket of real files and compare all; KEEP=1 leaves it mounted
	@$(BIN)/python -m tools.demo run $(if $(filter-out 0 no,$(KEEP)),--keep)

.PHONY: demo-stop
demo-stop: ## Unmount and remove the demo of `make demo KEEP=1`
	@$(BIN)/python -m tools.demo stop

# What precedes the tests. In a new .venv one process rewrites the asserts of all test modules, while
# mypy fills its cache; otherwise each worker would rewrite all of them.
.PHONY: checked
checked: setup
	@{ [ -e $(VENV)/.stamp-rewritten ] || $(BIN)/python -m pytest --collect-only -qq >/dev/null; } & \
	code=0; $(MAKE) --no-print-directory lint || code=$$?; \
	wait $$! && touch $(VENV)/.stamp-rewritten; exit $$code

.PHONY: test
test: checked ## Lint, types, and all tests, also on real mounts
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# A third of the time these tests wait, and each worker imports and collects all of them: three per
# two cores.
.PHONY: check
check: checked ## Lint, types, and the unit tests that are quick
	MOUNT_S3_TEST_SOAK=0.25 $(BIN)/python -m pytest -n $$(( ($$(nproc) * 3 + 1) / 2 )) \
	    --dist worksteal -m 'not slow' tests/unit $(ARGS)

# Ten times as many cases get ten times the timeout.
.PHONY: soak
soak: checked ## Random tests with SOAK=10 times as many cases; an hour or more; ends with a table
	MOUNT_S3_TEST_SOAK=$(SOAK) $(BIN)/python -m pytest -p tests.soak_report -n $(WORKERS) \
	    --dist worksteal -o timeout=$$((120 * $(SOAK))) $(ARGS)

# The tests of what runs without the interpreter. Leaks are looked for where no other programs run.
NATIVE_TESTS := tests/unit/native tests/unit/read/test_native_stream.py tests/unit/test_fastpath.py \
    tests/unit/metrics tests/unit/s3/crt tests/unit/fuse/test_callers.py \
    tests/unit/fuse/test_listings.py \
    tests/unit/cache/blocks/test_files.py tests/unit/cache/test_reading.py \
    tests/unit/cache/test_cache_model.py
MOUNT_TESTS := tests/server/test_crt.py tests/mount/test_read.py tests/mount/test_requests.py \
    tests/mount/test_channel_writes.py tests/mount/test_walk.py tests/mount/test_prepared.py

# test_symbols runs the compiler, which loses memory. test_copies: AddressSanitizer refuses memory that coreutils' dd and cat ask for.
.PHONY: asan
asan: setup ## Tests of the extensions with AddressSanitizer, UBSan and LeakSanitizer; ten minutes
	tools/sanitizers/run leaks $(NATIVE_TESTS) --ignore tests/unit/s3/crt/native/test_symbols.py $(ARGS)
	tools/sanitizers/run asan $(MOUNT_TESTS) -k 'not test_copies' $(ARGS)

.PHONY: tsan
tsan: setup ## Tests of the extensions with ThreadSanitizer; five minutes
	tools/sanitizers/run tsan $(NATIVE_TESTS) $(ARGS)

# What was found goes to .state/fuzz: inputs that reach new code into folders, a failing one beside.
.PHONY: fuzz
fuzz: setup ## Fuzz all that reads bytes of others (tests/fuzz), FUZZ_S=60 seconds each
	@for file in tests/fuzz/targets/[a-z]*.py; do \
	    name=$$(basename $$file .py); mkdir -p .state/fuzz/$$name; echo "$$name"; \
	    $(BIN)/python -m tests.fuzz $$name -max_total_time=$(FUZZ_S) -max_len=4096 -timeout=20 \
	        -verbosity=0 -artifact_prefix=.state/fuzz/$$name- .state/fuzz/$$name \
	        tests/fuzz/corpus/$$name; \
	done

.PHONY: mutations
mutations: setup ## Check that the unit tests notice faults (tools/mutations); ARGS='NAME' for some
	@$(BIN)/python -m tools.mutations $(ARGS)

# Takes minutes the first time, so `make test` does not call it and uses the stores that exist.
.PHONY: stores
stores: ## Build MinIO and versitygw for the tests of stores, if Go is installed
	@tools/build-stores

# The wheels are built from the last commit, so the tests run on that.
.PHONY: test-boot
test-boot: setup $(VENV)/.stamp-packaging ## Boot machines; lint and build the files in packaging/
	packaging/build-wheels debian-12
	MOUNT_S3_BOOT=1 $(BIN)/python -m pytest tests/boot tests/unit/test_packaging.py $(ARGS)

.PHONY: test-programs
test-programs: setup $(VENV)/.stamp-programs ## Use mounts with large programs: datasets, Orbax, Ray, nginx, Samba
	$(BIN)/python -m pytest tests/mount/test_programs.py tests/mount/test_file_servers.py \
	    tests/mount/test_ray.py $(ARGS)

.PHONY: conformance
conformance: setup ## Other people's suites on mounts: pjdfstest, fsx, fio, fs_mark; root, five minutes
	@tools/build-conformance
	@$(BIN)/python -m tests.conformance $(ARGS)

# Installs nothing, so that a hook or an editor can call it at any time.
.PHONY: lint
lint: | installed ## ruff (rules and format) and mypy, once `make setup` has installed them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: docs
docs: setup ## Generate docs/configuration.md's tables, docs/man and the chart of README.md
	@$(BIN)/python -m tools.options_table
	@$(BIN)/python -m tools.man_pages
	@$(BIN)/python -m tools.readme_chart

.PHONY: bench
bench: setup ## Measure how fast a mount is (bench/README.md)
	@$(BIN)/python -m bench.run $(ARGS)

# Not part of the set-up, because they are large and rarely needed.
$(VENV)/.stamp-bench $(VENV)/.stamp-packaging $(VENV)/.stamp-programs: $(VENV)/.stamp-%: $(VENV)/.stamp-packages
	$(PIP) --group $*
	@touch $@

.PHONY: bench-chart
bench-chart: setup $(VENV)/.stamp-bench ## Compare runs: ARGS='one.json two.json -o chart.svg'
	@$(BIN)/python -m bench.chart $(ARGS)

.PHONY: wheels
wheels: setup ## Build and test wheels and packages for Debian 12 and 13 (root); ARGS='debian-12' for other targets
	@packaging/build-wheels $(or $(ARGS),debian-12 debian-13)

.PHONY: format
format: | installed ## Let ruff correct what it can, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Stop the demo first: its mount and the server's folder cannot be removed while in use.
.PHONY: clean
clean: ## Remove everything that these commands made
	@if [ -e .state/demo ] && [ -x $(BIN)/python ]; then $(BIN)/python -m tools.demo stop; fi
	rm -rf $(VENV) .state build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find mountpoint -name '*.so' -delete -o -name '*.[ch]' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
