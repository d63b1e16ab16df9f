# Each target sets up what it needs: a machine with Python 3.10 or newer and pip is enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
HOSTS := .venv-hosts
PEERS := .venv-peers
SETUP := $(VENV)/.ready
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml plugins/hosts/*/pyproject.toml conformance/pyproject.toml)

.DEFAULT_GOAL := help
# Some images forbid Python to keep what it compiled. Tests start thousands of processes: each would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: hosts ported pictures help run fleet fleet-ray test thorough lint types architecture bench bench-peers soak hostile operators mutants kill-matrix honest flicker matrix versions clients architectures device tested dist stranger workflows docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(SETUP): $(PROJECTS) requirements-dev.txt requirements-docs.txt constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; minutes on a new machine)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	@touch $@

run: $(SETUP) ## serve a small model through one reinforcement-learning cycle
	@$(BIN)/devicekit demo

fleet: $(SETUP) ## steer two engines on this machine as one: update, restart, rolling update
	@$(BIN)/python -m examples.fleet

fleet-ray: $(SETUP) ## the same on Ray Serve: two replicas, an update, one killed; installs ray
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'ray[serve]>=2.49'
	@$(BIN)/python -m examples.fleet_ray

# Twice as many workers as cores: a good half of what a test does is wait for other processes.
test: $(SETUP) lint types architecture ## everything that must hold: lint, types, architecture, tests; some eight minutes on two cores
	@$(BIN)/python -m pytest -n $(or $(WORKERS),4) --dist loadfile --no-loadscope-reorder

thorough: $(SETUP) ## the tests that take minutes each, of which `make test` runs samples or none
	@DRAW=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m thorough

lint: $(SETUP) ## style and likely mistakes
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .

types: $(SETUP) ## strict types of the product; types of the tests
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/mypy --no-error-summary --config-file tests/mypy.ini tests

architecture: $(SETUP) ## dependencies point downwards only
	@$(BIN)/lint-imports --no-logo

bench: $(SETUP) ## measure, each figure beside its yardstick, peer and target; writes docs/results/bench.md
	@$(BIN)/python -m bench --markdown docs/results/bench.md

bench-peers: ## time other engines in turns with ours, in an environment of their own (heavy); docs/results/bench-peers.md
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-peers.txt
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-peers-alone.txt
	@test -n "$$NANO_VLLM" || $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		"nano-vllm @ git+https://github.com/GeeeekExplorer/nano-vllm" || echo "nano-vllm could not be installed: not run"
	@VLLM_PLUGINS= $(PEERS)/bin/python -m bench peers --markdown docs/results/bench-peers.md

SECONDS ?= 3600
soak: $(SETUP) ## random operators, faults, pools and clients, for SECONDS (3600) or STEPS, REQUESTS, on WORKERS (1); JSON
	@$(BIN)/python -m tests.soak $(if $(STEPS),--steps $(STEPS),--seconds $(SECONDS)) --workers $(or $(WORKERS),1) \
		$(if $(REQUESTS),--requests $(REQUESTS))

hostile: $(SETUP) ## judge every hostile backend in every phase
	@HOSTILE=all $(BIN)/python -m pytest -q tests/conformance/test_hostile.py

operators: $(SETUP) ## trace what an engine sends to a device, and write the list that conformance judges by
	@$(BIN)/python -m tools.sent_operators --write

mutants: $(SETUP) ## change the code, and see whether the tests notice: COUNT (all) by SEED (0); writes docs/results/mutants.md
	@$(BIN)/python -m tools.mutants $(if $(COUNT),--count $(COUNT)) --seed $(or $(SEED),0) --markdown docs/results/mutants.md

kill-matrix: $(SETUP) ## run the conformance suite over every deliberately faulty backend
	@$(BIN)/python -m devicekit_conformance.selftest --markdown conformance/WRITTEN_FAULTS.md
	@mkdir -p dist && for shard in 1 2 3 4; do \
		OMP_WAIT_POLICY=passive $(BIN)/python -m devicekit_conformance.selftest.matrix --shard $$shard/4 --json dist/kill-$$shard.json || true; done
	@$(BIN)/python -m devicekit_conformance.selftest.matrix --merge dist/kill-?.json --markdown conformance/KILL_MATRIX.md

honest: $(SETUP) ## judge every honest backend that the contract leaves free, then PAIRS (20) of two freedoms by SEED (0)
	@OMP_WAIT_POLICY=passive $(BIN)/python -m devicekit_conformance.selftest.refusals
	@OMP_WAIT_POLICY=passive $(BIN)/python -m devicekit_conformance.selftest.refusals --pairs $(or $(PAIRS),20) --seed $(or $(SEED),0)

flicker: $(SETUP) ## judge the cpu and the simulator RUNS (20) times each, and tell every verdict that changes
	@$(BIN)/python -m devicekit_conformance.selftest.flicker --runs $(or $(RUNS),20) --backend cpu
	@$(BIN)/python -m devicekit_conformance.selftest.flicker --runs $(or $(RUNS),20) \
		--backend devicekit_conformance.simulated:uncached --probe devicekit_conformance.simulated:SimProbe

matrix: $(SETUP) ## run the suite from wheels on every supported pluggy and pytest
	@$(BIN)/python conformance/matrix.py --markdown docs/results/conformance-matrix.md

UV = $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
versions: $(SETUP) ## the suite on every claimed combination of versions; COLUMN, FORM=short; writes docs/results/versions.md
	@$(UV)
	@$(BIN)/python -m tools.versions $(if $(COLUMN),--column $(COLUMN)) --form $(or $(FORM),long)

clients: $(SETUP) ## real client programs against a real server; needs a package index and npm
	@$(BIN)/python -m tests.clients --markdown docs/results/clients.md

architectures: $(SETUP) ## every architecture that transformers has: served with its own tokens, or refused; writes the table
	@$(BIN)/python -m tests.architectures --markdown docs/results/architectures.md

CERTIFY = -m devicekit.devtools.certify --plugins plugins --plugins conformance
device: ## put the device of this machine to the test, from the checkout, installing nothing; DEVICE_PYTHON, DEVICE_ARGS
	@PYTHONPATH=. $(or $(DEVICE_PYTHON),$(shell command -v python3)) $(CERTIFY) $(DEVICE_ARGS)

tested: $(SETUP) ## write what was tested on what, from the records in docs/results
	@$(BIN)/python -m tools.tested

dist: $(SETUP) ## build wheels and sdists of every distribution into dist/, and check them; RELEASE=v1.2.3 for a release
	@$(BIN)/python -m tools.dist $(if $(RELEASE),--release "$(RELEASE)")

stranger: dist ## install each extra of the built wheels alone, run every command, uninstall; check types from outside
	@$(UV)
	@$(BIN)/python -m tools.stranger --constraint constraints.txt $(if $(ONLY),--only $(ONLY))

workflows: $(SETUP) ## hold the workflows to their schema and to what makes workflows unsafe
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check check-jsonschema zizmor
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/zizmor --offline --quiet .github/workflows

docs: $(SETUP) ## write the pages that are generated from the code, and build the site into site/, without a warning
	@$(BIN)/python -m tools.reference
	@$(BIN)/python -m devicekit.devtools.audit.page
	@$(BIN)/python -m tools.backends
	@$(BIN)/python -m tools.host_calls
	@$(BIN)/python -m sphinx -b html -q -W --keep-going -j 2 docs site
	@echo "open site/index.html"

ported: $(SETUP) ## run audit --fix on real projects, and their own tests before and after; writes docs/results/ported.md
	@$(BIN)/python -m tools.ported --markdown docs/results/ported.md

pictures: $(SETUP) ## capture commands at two widths, and pages if chromium is there, into docs/pictures
	@$(BIN)/python -m tools.pictures

hosts: ## test the adapters for other engines against the engines themselves (heavy; an environment of its own)
	@test -x $(HOSTS)/bin/python || $(PYTHON) -m venv $(HOSTS)
	@$(HOSTS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-hosts.txt
	@$(HOSTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-hosts-alone.txt
	@test -n "$$DEEPSPEED_TESTS" || test -d $(HOSTS)/DeepSpeed || git clone --quiet --depth 1 \
		--branch "v$$($(HOSTS)/bin/python -c 'from importlib.metadata import version; print(version("deepspeed"))')" \
		https://github.com/deepspeedai/DeepSpeed $(HOSTS)/DeepSpeed || echo "DeepSpeed's tests were not fetched: not run"
	@test -n "$$NANO_VLLM" || test -d $(HOSTS)/nano-vllm || git clone --quiet --depth 1 \
		https://github.com/GeeeekExplorer/nano-vllm $(HOSTS)/nano-vllm || echo "nano-vllm was not fetched: not run"
	@export DEEPSPEED_TESTS="$${DEEPSPEED_TESTS:-$$(ls -d $(HOSTS)/DeepSpeed/tests 2>/dev/null)}"; \
		export NANO_VLLM="$${NANO_VLLM:-$$(ls -d $(HOSTS)/nano-vllm 2>/dev/null)}"; \
		test -n "$$DEEPSPEED_TESTS" || unset DEEPSPEED_TESTS; test -n "$$NANO_VLLM" || unset NANO_VLLM; \
		$(HOSTS)/bin/python -m pytest tests/hosts
	@$(HOSTS)/bin/python -m tools.host_calls --record

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) $(HOSTS) $(PEERS) .venv-versions site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
