# Each target works alone, first, in a fresh clone: it makes .venv from the lock file, and goes on from there.
# PYTHON names the interpreter that .venv is made with, WORKERS how many processes run tests.

PYTHON ?= python3
export PYTHON
# Twice as many as the two cores that our continuous integration has: most tests wait for others.
WORKERS ?= 3
export WORKERS
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --hypothesis-profile=ci
TYPED := sdk/catalogzero $(wildcard catalog/*/src) examples tests benchmarks docs/site_build
.DEFAULT_GOAL := help

.PHONY: help
help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/ready: requirements/dev.txt pyproject.toml $(wildcard catalog/*/pyproject.toml)
	@.ci/setup

.PHONY: demo
demo: .venv/ready ## the whole way on real data, in about two minutes; KEEP=1 leaves it running, SCALE=1 plays it with several of each through NATS
	@$(BIN)/python -m examples.quickstart $(if $(KEEP),--keep) $(if $(SCALE),--scale)

.PHONY: test
test: lint types ## lint, types and all tests that CI runs (about twenty minutes)
	@.ci/tests .venv --durations=15

.PHONY: test-all
test-all: lint types ## the same, with the slow and the chaos tests, and half an hour of mixed load
	CATALOGZERO_SOAK_S=1800 $(PYTEST)

.PHONY: pythons
pythons: .venv/ready ## what can differ between Pythons, on every further one here
	@.ci/pythons

.PHONY: lint
lint: .venv/ready ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: .venv/ready ## mypy, strict
	$(BIN)/mypy $(wildcard $(TYPED))

.PHONY: coverage
coverage: .venv/ready ## which lines the tests reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --hypothesis-profile=ci -m "not slow and not chaos"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

.PHONY: bench
bench: .venv/ready ## every benchmark: build/bench/report.json, and the tables of docs/performance.md
	@$(BIN)/python -m benchmarks.suite

.PHONY: bench-quick
bench-quick: .venv/ready ## every benchmark at its smallest: whether it runs, never how fast
	@$(BIN)/python -m benchmarks.suite --quick

.PHONY: chaos
chaos: .venv/ready ## kill -9, cut connections, full disks: nothing lost, nothing twice
	CATALOGZERO_CHAOS_KILLS=200 CATALOGZERO_CHAOS_ROWS=1000000 $(PYTEST) tests/chaos tests/scheduler/test_chaos.py \
	  tests/scheduler/test_instance_chaos.py

.PHONY: interop
interop: .venv/ready ## handlers and clients against a running ScheduleZero: SCHEDULEZERO_HTTP=URL SCHEDULEZERO_ZMQ=ADDRESS, SCHEDULEZERO_START=COMMAND to restart it, SCHEDULEZERO_PYTHON=COMMAND that runs a script beside its package
	@test -n "$(SCHEDULEZERO_HTTP)" -a -n "$(SCHEDULEZERO_ZMQ)" || { echo "Name the server to check against:" \
	  "make interop SCHEDULEZERO_HTTP=http://127.0.0.1:8888 SCHEDULEZERO_ZMQ=tcp://127.0.0.1:4242" >&2; exit 2; }
	SCHEDULEZERO_HTTP="$(SCHEDULEZERO_HTTP)" SCHEDULEZERO_ZMQ="$(SCHEDULEZERO_ZMQ)" \
	  SCHEDULEZERO_START="$(SCHEDULEZERO_START)" $(if $(SCHEDULEZERO_PYTHON),SCHEDULEZERO_PYTHON="$(SCHEDULEZERO_PYTHON)") \
	  $(BIN)/python -m pytest -v -p no:cacheprovider tests/system/test_schedulezero.py \
	  $(if $(SCHEDULEZERO_START),,tests/system/test_schedulezero_client.py tests/system/test_side_by_side.py)

.PHONY: docs
docs: .venv/ready ## every link and every example of README and docs, checked
	$(BIN)/python -m pytest tests/house/test_docs.py tests/house/test_docs_site.py tests/house/test_how_tos.py

.PHONY: docs-site
docs-site: .venv/ready ## the documentation as a site with search, into build/docs-site/site
	@$(BIN)/python -m docs.site_build

.PHONY: pictures
pictures: .venv/ready ## the pictures in docs/images, taken again (needs Chromium)
	CATALOGZERO_TEST_PICTURES=$(CURDIR)/docs/images $(PYTEST) -k picture tests/house/test_pictures.py catalog/conductor/tests/test_pages.py

.PHONY: browser
browser: ## installs Chromium where apt-get and root are at hand; without it the page tests are skipped
	@.ci/browser

.PHONY: systemd
systemd: ## installs systemd-nspawn, the same way; without it the units are not booted
	@.ci/systemd

.PHONY: lock
lock: ## resolves the lock files in requirements/ again (needs uv)
	for of in "dev --extra dev pyproject.toml requirements/build.in" \
	  "tap-postgres requirements/tap-postgres.in" "tap-rest-api requirements/tap-rest-api.in" \
	  "own-sources requirements/own-sources.in" "pyright requirements/pyright.in"; do \
	  set -- $$of; name=$$1; shift; \
	  uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --no-annotate "$$@" --output-file requirements/$$name.txt || exit 1; done

.PHONY: clean
clean: ## removes .venv and everything that was built
	rm -rf .venv build dist site .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
