# The two commands are `make run` and `make test`; both work on a fresh clone and need python3 >= 3.11 and a network.

.DEFAULT_GOAL := help
.PHONY: help run test test-rust test-static test-slow kernels kernels-checked bench protocol constraints fix clean
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # without compiled modules everything starts three times slower

# The interpreter: $(PYTHON) where it is set, else the first of these that is new enough.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14)

# Files of tests run side by side, each in one process: most of their time is somebody's start, or somebody's wait.
pytest = $(BIN)/python -m pytest -q -n 2 --dist loadfile
step = @printf '\033[1m== %s\033[0m\n' "$(1)"
install = @if [ -x $(BIN)/uv ]; \
	then $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$(1)]'; \
	else $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(1)]'; fi

help:
	@echo 'make run        serve real models, ask about real files and sentences, check the answers'
	@echo 'make test       every check and every test but the slow ones'
	@echo 'make test-slow  the slow tests; those of some folders: make test-slow SLOW="graph:15 jobs:25" (and minutes)'
	@echo 'make kernels    build the native transport for use and for measuring (make test builds one with checks)'
	@echo 'make bench      every comparison of benchmarks/README.md, an hour and a half; needs libb64-0d and Java'
	@echo 'make fix        format, and mend what ruff can mend'
	@echo 'make protocol   compile runtime/headrace/protocol/*.proto'
	@echo 'make constraints  take the newest versions of what is installed'
	@echo 'make clean      remove everything that was made'

run: $(VENV)/.run-installed
	@$(MAKE) --no-print-directory kernels KERNELS=if-possible
	@$(BIN)/python -m demo

# The native transport. Where cargo or its registry is out of reach, Headrace runs without it and a line says so; where they
# are there, a build that fails is a failure. One build is installed at a time: the stamp says which.
KERNEL_FILES := $(shell find kernels -name target -prune -o -type f \( -name '*.rs' -o -name '*.toml' -o -name 'Cargo.lock' -o -name '*.py' -o -name '*.pyi' \) -print)
KERNELS := always
cargo_is_there = cargo --version >/dev/null 2>&1 && cargo fetch --quiet --locked --manifest-path kernels/Cargo.toml 2>$(VENV)/.cargo.log

kernels: $(VENV)/.run-installed
	@$(call build_kernels,release,--release)

kernels-checked: $(VENV)/.dev-installed
	@$(call build_kernels,checked,--profile checked --features faults)

# $(1): the stamp, $(2): maturin's options.
define build_kernels
if [ -f $(VENV)/.kernels-$(1) ] && [ -z "$$(find $(KERNEL_FILES) -newer $(VENV)/.kernels-$(1))" ]; then exit 0; fi; \
if ! { $(cargo_is_there); }; then \
  rm -f $(VENV)/.kernels-*; \
  if $(BIN)/python -c 'import headrace_kernels' 2>/dev/null; then $(BIN)/python -m pip uninstall --quiet --yes headrace-kernels; fi; \
  if [ $(KERNELS) = always ]; then echo 'the native transport needs cargo (https://rustup.rs) and its registry' >&2; exit 1; fi; \
  echo 'no cargo, or no way to its registry: the portable transport takes the requests'; exit 0; fi; \
printf '\033[1m== %s\033[0m\n' 'kernels ($(1) build)'; \
$(BIN)/python -c 'import maturin' 2>/dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt maturin || exit 1; \
cd kernels && VIRTUAL_ENV=$(CURDIR)/$(VENV) PATH="$(CURDIR)/$(BIN):$$PATH" \
  $(CURDIR)/$(BIN)/maturin develop --locked $(2) >../$(VENV)/.kernels.log 2>&1 || { cat ../$(VENV)/.kernels.log >&2; exit 1; }; \
cd .. && rm -f $(VENV)/.kernels-* && touch $(VENV)/.kernels-$(1)
endef

test: $(VENV)/.dev-installed $(VENV)/.prometheus
	@$(MAKE) --no-print-directory kernels-checked KERNELS=if-possible
	@rust=$$([ ! -f $(VENV)/.kernels-checked ] || echo test-rust); \
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target $$rust test-static
	$(call step,pytest)
	@if [ -f $(VENV)/.kernels-checked ]; then $(pytest) --parts; else $(pytest) --parts --without-kernels; fi

# What needs nothing to run: one core, while cargo has the other.
test-static: $(VENV)/.dev-installed
	$(call step,ruff)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo 'not formatted: make fix'; exit 1; }
	$(call step,pyright)
	@$(BIN)/pyright --pythonpath $(BIN)/python
	$(call step,imports point down)
	@told=$$($(BIN)/lint-imports --no-cache) || { echo "$$told"; exit 1; }; echo "$$told" | tail -n 1
	$(call step,generated protocol is up to date)
	@$(BIN)/python tools/check_protocol.py

# What needs no interpreter. Cargo counts its jobs for itself.
test-rust:
	$(call step,cargo fmt$(comma) clippy$(comma) test)
	@cd kernels && cargo fmt --check
	@cd kernels && MAKEFLAGS= cargo clippy --quiet --locked --all-targets --features headrace-core/faults -- -D warnings
	@cd kernels && MAKEFLAGS= cargo test --quiet --locked -p headrace-core

# One folder of tests after the other, each with so many minutes on two cores.
SLOW := cluster:20 graph:15 jobs:25 native:5 packaging:15 scheduling:10 telemetry:15 transport:60 steering:3
test-slow: $(VENV)/.dev-installed $(VENV)/.prometheus $(if $(findstring cluster,$(SLOW)),$(VENV)/.redis-server)
	@$(MAKE) --no-print-directory kernels-checked KERNELS=if-possible
	@for group in $(SLOW); do \
	  printf '\033[1m== slow tests of %s, in at most %s minutes\033[0m\n' $${group%:*} $${group#*:}; \
	  timeout --signal=INT --kill-after=60 $${group#*:}m $(BIN)/python -m pytest -q -m slow tests/$${group%:*} || exit 1; \
	done

protocol: $(VENV)/.dev-installed
	@$(BIN)/python tools/generate_protocol.py
	@cd kernels && cargo run --quiet --locked -p headrace-gen -- "$$(sha256sum ../runtime/headrace/protocol/headrace.proto | cut -d' ' -f1)"

constraints: $(VENV)/.dev-installed
	@$(BIN)/uv pip compile --quiet --upgrade --universal --no-annotate --custom-compile-command 'make constraints' \
		--extra cpu --extra triton --extra nodes --extra dev pyproject.toml --output-file constraints.txt
	@$(BIN)/uv pip compile --quiet --upgrade --no-annotate --no-header --extra gpu pyproject.toml \
		| grep '^onnxruntime-gpu==' >> constraints.txt

bench: $(VENV)/.dev-installed kernels
	@$(BIN)/python -m benchmarks.transports
	@$(BIN)/python -m benchmarks.peers
	@$(BIN)/python -m benchmarks.goodput
	@$(BIN)/python -m benchmarks.budgets
	@$(BIN)/python -m benchmarks.lengths
	@$(BIN)/python -m benchmarks.graphs
	@$(BIN)/python -m benchmarks.jobs
	@$(BIN)/python -m benchmarks.batch_peers
	@$(BIN)/python -m benchmarks.share
	@$(BIN)/python -m benchmarks.python_models
	@$(BIN)/python -m benchmarks.triton_backend
	@$(BIN)/python -m benchmarks.scheduling
	@$(BIN)/python -m benchmarks.columns
	@$(BIN)/python -m benchmarks.telemetry
	@$(BIN)/python -m benchmarks.load_check
	@$(BIN)/python -m benchmarks.startup
	@$(BIN)/python -m benchmarks.cluster

fix: $(VENV)/.dev-installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@if cargo --version >/dev/null 2>&1; then cd kernels && cargo fmt; fi

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis kernels/target
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says that an install went well; a stale one (new pins, new extras) makes it run again, which takes a second.
# uv is only faster: without it pip installs the same versions.
$(VENV)/.made:
	$(call step,environment in $(VENV))
	@for python in $(PYTHONS); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo 'Headrace needs Python 3.11 or newer; name one: make run PYTHON=/path/to/python3' >&2; exit 1; fi; \
	if ! $$found -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "$$found cannot make environments (no ensurepip); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; fi; \
	$$found -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet uv 2>/dev/null || echo 'uv is not to be had here, pip takes longer'
	@touch $@

$(VENV)/.run-installed: $(VENV)/.made pyproject.toml constraints.txt
	$(call step,packages to run)
	$(call install,cpu$(comma)triton$(comma)nodes)
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.run-installed pyproject.toml constraints.txt
	$(call step,packages to test)
	$(call install,cpu$(comma)triton$(comma)nodes$(comma)dev)
	@touch $@

# Tests let a real Prometheus scrape the server, and promtool judge what it scrapes; slow ones put Redis behind Ray's GCS.
$(VENV)/.prometheus: commands := prometheus promtool
$(VENV)/.redis-server: commands := redis-server
$(VENV)/.prometheus $(VENV)/.redis-server: $(VENV)/.made
	@package=$(@:$(VENV)/.%=%); \
	if ! { $(foreach command,$(commands),command -v $(command) &&) true; } >/dev/null 2>&1; then \
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then \
	    echo "the tests need $(commands); on Debian and Ubuntu: sudo apt-get install $$package" >&2; exit 1; fi; \
	  printf '\033[1m== %s\033[0m\n' "$$package (apt-get)"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get -qq update && apt-get -qq install -y --no-install-recommends $$package; } >$@.log 2>&1 || { cat $@.log >&2; \
	    echo "$$package, which the tests need, could not be installed; see above" >&2; exit 1; }; \
	fi
	@touch $@

comma := ,
