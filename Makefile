# make help lists the targets.

PYTHON ?= python3
BIN := .venv/bin
PROTO_BIN := .venv-proto/bin
PROTOS := $(wildcard proto/boxloss/v1/*.proto)
DISTRIBUTIONS := --editable 'client[audit,cli]' --editable server

.DEFAULT_GOAL := help
.PHONY: help demo serve test fuzz fuzzquick mutants lint format proto released docs requirements compat bench benchquick benchmemory bench-audit clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv/runtime ## start a server, score real boxes, print a table
	$(BIN)/python examples/demo.py

serve: .venv/runtime ## run a server on localhost:50051 until Ctrl-C
	$(BIN)/boxloss-server

# Three at a time, since much of it waits: for deadlines, alerts, and processes that end. Bytecode is kept: the tests start hundreds of programs.
test: export PYTHONDONTWRITEBYTECODE :=
test: .venv/dev .venv-proto/installed ## run all tests
	$(BIN)/python -m pytest $(or $(PYTEST),--numprocesses 3 --dist worksteal --durations 10)

fuzz: .venv/fuzz ## give a server inputs that nobody would write, a million of them
	$(BIN)/python -m tests.fuzz $(or $(FUZZ),--inputs 1000000)

fuzzquick: .venv/fuzz ## the same with 100,000, 3 minutes
	$(BIN)/python -m tests.fuzz --inputs 100000 --seed 11 $(FUZZ)

mutants: .venv/mutants ## look for faults in batching, retries, streams and the watchdog that no test notices
	mkdir -p build/mutants
	cp -r client/boxloss server/boxloss_server tests pyproject.toml build/mutants
	cd build/mutants && $(CURDIR)/$(BIN)/mutmut run $(MUTANTS) && $(CURDIR)/$(BIN)/mutmut results

lint: .venv/dev ## check style, types, imports and the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python examples/*.py examples/detector
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against proto/released.binpb

format: .venv/dev ## bring code and contract into their form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

proto: .venv-proto/installed ## generate the stubs from the contract
	$(PROTO_BIN)/python proto/generate.py client

released: .venv/dev ## write down the contract of a release, which later ones only add to
	$(BIN)/buf build --exclude-source-info --output proto/released.binpb

docs: .venv/dev ## write docs/losses.md and its pictures, and the table of settings
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/settings.py
	$(BIN)/python docs/pictures.py

# What the images install, with the hashes of all files that pip may take.
requirements: private COMPILE = $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate \
	--custom-compile-command "make requirements" --constraint constraints.txt --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --no-emit-package boxloss --no-emit-package boxloss-server
requirements: .venv/dev ## write deploy/requirements, after a change of a dependency
	printf '%s\n' './client[cli]' './server[tracing]' | $(COMPILE) --output-file deploy/requirements/cuda.txt -
	printf '%s\n' './client[cli]' './server[tracing]' | $(COMPILE) --excludes deploy/requirements/cuda-only.txt \
		--no-emit-package torch --output-file deploy/requirements/cpu.txt -
	printf '%s\n' hatchling pip | $(COMPILE) --output-file deploy/requirements/build.txt -

compat: .venv/dev .venv-oldest/installed ## run the SDK with the oldest packages that it accepts
	$(BIN)/python -m tests.compatibility .venv-oldest/bin/python

bench: .venv/dev .venv-peers/installed ## measure boxloss beside its limits and its peers, 30 minutes
	$(BIN)/python -m benchmarks $(BENCH)

benchquick: .venv/dev ## measure a little, without peers, 90 seconds
	$(BIN)/python -m benchmarks --quick --output build/bench/quick $(BENCH)

benchmemory: .venv/dev ## watch the server's memory under load, 10 minutes
	$(BIN)/python -m benchmarks memory --memory-seconds 600 --output build/bench/memory $(BENCH)

bench-audit: .venv/dev .venv-peers/installed ## measure the label audit beside cleanlab, 3 minutes
	$(BIN)/python -m benchmarks.audit $(BENCH)

clean: ## remove the environments
	rm -rf .venv .venv-proto .venv-oldest .venv-peers

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --upgrade pip

.venv/runtime: constraints.txt client/pyproject.toml server/pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt $(DISTRIBUTIONS)
	touch $@

.venv/dev: .venv/runtime pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev
	touch $@

.venv/fuzz: .venv/dev
	$(BIN)/pip install --quiet --constraint constraints.txt --group fuzz
	touch $@

.venv/mutants: .venv/dev
	$(BIN)/pip install --quiet --constraint constraints.txt --group mutants
	touch $@

.venv-proto/installed: proto/requirements.txt
	$(PYTHON) -m venv .venv-proto
	$(PROTO_BIN)/pip install --quiet --requirement proto/requirements.txt
	touch $@

.venv-oldest/installed: client/oldest.txt client/pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint client/oldest.txt --editable client
	touch $@

# A peer that cannot be installed is left out.
.venv-peers/installed: benchmarks/peers.txt client/pyproject.toml server/pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --constraint benchmarks/peers.txt --upgrade pip
	.venv-peers/bin/pip install --quiet --constraint benchmarks/peers.txt --editable client --editable server
	-.venv-peers/bin/pip install --quiet --constraint benchmarks/peers.txt mosec
	-.venv-peers/bin/pip install --quiet --constraint benchmarks/peers.txt litserve
	-.venv-peers/bin/pip install --quiet --constraint benchmarks/peers.txt 'ray[serve]'
	-.venv-peers/bin/pip install --quiet --constraint benchmarks/peers.txt cleanlab
	touch $@
