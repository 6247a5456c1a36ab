# make help lists the targets.

PYTHON ?= python3
BIN := .venv/bin
PROTO_BIN := .venv-proto/bin
PROTOS := $(wildcard proto/boxloss/v1/*.proto)
DISTRIBUTIONS := --editable 'client[cli]' --editable server

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint format proto docs compat clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/runtime ## start a server, score real boxes, print a table
	$(BIN)/python examples/demo.py

serve: .venv/runtime ## run a server on localhost:50051 until Ctrl-C
	$(BIN)/boxloss-server

test: .venv/dev .venv-proto/installed ## run all tests
	$(BIN)/python -m pytest $(PYTEST)

lint: .venv/dev ## check style, types and the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

format: .venv/dev ## bring code and contract into their form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

proto: .venv-proto/installed ## generate the stubs from the contract
	$(PROTO_BIN)/python proto/generate.py client

docs: .venv/dev ## write docs/losses.md and its pictures
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/pictures.py

compat: .venv/dev .venv-oldest/installed ## run the SDK with the oldest packages that it accepts
	$(BIN)/python -m tests.compatibility .venv-oldest/bin/python

clean: ## remove the environments
	rm -rf .venv .venv-proto .venv-oldest

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --upgrade pip

.venv/runtime: constraints.txt client/pyproject.toml server/pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --constraint constraints.txt $(DISTRIBUTIONS)
	touch $@

.venv/dev: .venv/runtime pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev
	touch $@

.venv-proto/installed: proto/requirements.txt
	$(PYTHON) -m venv .venv-proto
	$(PROTO_BIN)/pip install --quiet --requirement proto/requirements.txt
	touch $@

.venv-oldest/installed: client/oldest.txt client/pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint client/oldest.txt --editable client
	touch $@
