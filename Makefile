# DiML: `make help` lists what can be asked for.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
STAMP := $(VENV)/.installed-by-make

# mpirun refuses root unless it is told twice that this is meant (containers, CI).
ifeq ($(shell id -u),0)
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif
# The environment's own commands first: `mpirun` below is the one that pip installed.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Ranks share the cores already.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
# Some thousand processes start in the tests: each would compile DiML's modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install run test check sim soak bench clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## set up .venv in the checkout: MPI, DiML, the developer's tools

$(STAMP): pyproject.toml diml/world/mpi_params.py
	@test -x $(PYTHON) || { \
	  for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue; \
	    echo "making $(VENV) with $$python"; \
	    $$python -m venv $(VENV) || { rm -rf $(VENV); \
	      echo "$$python cannot make virtual environments: install its venv package" \
	        "(Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }; \
	    exit 0; \
	  done; \
	  echo "Python 3.10 or later is needed" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(VENV) has a Python older than 3.10: remove it" >&2; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip -q
	$(PYTHON) -m pip install --quiet --quiet --disable-pip-version-check --editable '.[dev]'
	@$(PYTHON) -m diml.cli doctor --fix
	@touch $(STAMP)

run: install ## matrix factorization on 6 processes, one killed halfway
	mpirun -n 6 python -m diml.jobs.mf --generate --K 8 --update adagrad --lambda 0.02 \
	  --num_iterations 60 --servers 1 --spares 1 --drill 1,120,0,0

test: install check ## everything that CI holds, J (3) tests at a time, in under 20 minutes
	python -m pytest -q --durations=20 -n $(or $(J),3) --dist loadgroup --no-loadscope-reorder tests

check: install ## format, lint, types, import floors
	ruff format --check .
	ruff check .
	mypy
	python -m pytest -q tests/unit/test_floors.py tests/unit/test_tidy.py

sim: install ## 10,000 seeded schedules of failures, without MPI; SEED=n plays one again
	python -m tests.sim $(if $(SEED),--seed $(SEED),--schedules $(or $(N),10000))

soak: install ## N (20) runs on real MPI with random kills; then kills of each job, 50 rounds of all
	python -m tests.drills.soak --runs $(or $(N),20)
	DIML_TEST_KILL_ROUNDS=50 DIML_PS_KILLS=100 DIML_MF_KILLS=20 python -m pytest -q \
	  tests/mpi/test_durable.py tests/mpi/test_mf_kills.py tests/drills/test_ps_kills.py -k kill
	DIML_PS_KILLS=100 python -m pytest -q tests/drills/test_ps_beside.py

bench: install ## the side-by-side benchmarks in quick sizes, into bench/RESULTS.md
	python bench/results.py

clean: ## remove what tools leave behind (not .venv)
	rm -rf build out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find diml tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
