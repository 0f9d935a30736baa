# latentpg: every command the project needs. `make` alone lists them.
#
#   make demo PYTHON=python3.11            another interpreter to build .venv from
#   make test TORCH_ARGS='--index-url …'   another build of torch (pip's own arguments, used for torch alone)

PYTHON ?= python3
TORCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest
# glibc otherwise gives freed memory back and fetches it anew, and whichever function runs next pays for the page faults
STEADY_HEAP := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
CHECKED := --jaxtyping-packages=latentpg,beartype.beartype
# Two workers finish first on two cores; WORKERS=0 runs in one process, for a debugger.
WORKERS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

##@ The two commands of the README

.PHONY: demo
demo: $(VENV)/.demo ## Set up, then run the quickstart study: a table, figures and a report
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/latentpg study quickstart

.PHONY: test
test: lint types tests tests-checked docs ## Set up, then lint, types, tests in both passes, doctests, documents, docs

##@ Parts of `make test`

.PHONY: lint
lint: $(VENV)/.test ## Style and formatting, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.test ## The type checker, over package and tests
	$(BIN)/mypy

.PHONY: tests
tests: $(VENV)/.test ## Pass 1: tests, doctests and the code blocks of README and docs, as a user runs them
	$(PYTEST) -n $(WORKERS) -m "not slow" --doctest-modules tests latentpg

.PHONY: tests-checked
tests-checked: $(VENV)/.test ## Pass 2: the tests again with every shape annotation checked
	$(PYTEST) -n $(WORKERS) -m "not slow and not production" $(CHECKED) tests

.PHONY: docs
docs: $(VENV)/.test ## Build the site into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -W -E --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html
	@echo "docs: $(CURDIR)/docs/_build/html/index.html"

##@ More

.PHONY: test-all
test-all: test tests-slow ## Everything, the slow statistical tests too

.PHONY: tests-slow
tests-slow: $(VENV)/.test ## The slow statistical tests alone
	$(PYTEST) -n $(WORKERS) -m slow tests

.PHONY: mutations
mutations: $(VENV)/.test ## Take out guards one at a time, and hold that the tests notice
	$(BIN)/python -m tests.mutations

# Half an hour; the slow tests run three minutes of it
SOAK_SECONDS ?= 1800

.PHONY: soak
soak: $(VENV)/.test ## Train, evaluate, go on and study over and over: memory and open files must stay flat
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m tests.soak $(SOAK_SECONDS)

.PHONY: bench
bench: $(VENV)/.test ## Benchmarks: ratios within one run, on one thread
	$(STEADY_HEAP) $(PYTEST) benchmarks
	$(BIN)/python -m benchmarks.page

.PHONY: gallery
gallery: $(VENV)/.test ## Run every named study and write docs/gallery, its page and the numbers of docs/choosing.md
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m benchmarks.gallery

.PHONY: format
format: $(VENV)/.test ## Mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: setup
setup: $(VENV)/.demo ## Create .venv with the library alone

.PHONY: setup-test
setup-test: $(VENV)/.test ## Create .venv with the library and everything to work on it

.PHONY: clean
clean: ## Remove .venv, caches and built docs; run folders stay
	rm -rf $(VENV) docs/_build build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks *.egg-info
	find latentpg tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Set-up. A stamp is a hidden file inside .venv: it is there when its step has ended well, and older than what it was
# made from when the step must run again.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "latentpg needs Python 3.11, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)" >&2; \
	  echo "fix: install Python 3.11 and name it, for example:  make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "'$(PYTHON)' cannot create virtual environments: its venv module is not installed." >&2; \
	  echo "fix: install it (on Debian and Ubuntu it is the package python3.11-venv), then run make again" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and by itself, without the other pins: TORCH_ARGS may point at a place that serves other versions of what
# torch needs, and the next step brings those to the pinned ones
$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) $$(grep '^torch==' constraints.txt)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,docs,dev]'
	@touch $@ $(VENV)/.demo
