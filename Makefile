# `make run` and `make test` need nothing but Python 3.11 or newer with venv; they keep what they install in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Many tests wait for other programs, so that more processes than two cores are of use (tests/support/balance.py).
JOBS ?= 6
DIST ?= dist

.PHONY: run demo test lint types compiled bench evaluate incident live torture device release docs clean help

help:
	@echo "make run     start the exporter; ARGS='--target vllm=http://127.0.0.1:8000' passes options"
	@echo "make demo    simulated engines, traffic and incidents, and the status page over them; no GPU needed"
	@echo "make test    lint, types and every test"
	@echo "make bench   measure against prometheus_client, httpx and vmagent"
	@echo "make evaluate  judge alerts, risks and load headroom on replayed traces; writes docs/evaluation.md, docs/load-headroom.md"
	@echo "make incident ARGS='DIR --serve 9090'  a Prometheus with an hour of 36 engines in trouble, for the dashboards"
	@echo "make live    real engines with tiny models under the exporter and its proxy; writes docs/acceptance.md; ARGS=--ramps: load headroom, said and found"
	@echo "make torture mutated engines and hostile clients; writes docs/reliability.md, in minutes"
	@echo "make device  a real GPU beside what the exporter says of it, in 200 s; ARGS=--stub proves the checks without one"
	@echo "make release DIST=DIR  wheel, sdist, chart, SBOM, checksums, and the image where a builder is installed; reproducible"
	@echo "make docs    write everything that is generated: METRICS.md, alerts, dashboards, marked parts, the settings' schema"

$(VENV)/.run: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

run: $(VENV)/.run
	$(BIN)/llm-headroom run $(ARGS)

demo: $(VENV)/.run
	$(BIN)/llm-headroom demo $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Tests start the program hundreds of times: its bytecode is written once, whatever the environment says.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.dev
	@$(MAKE) --no-print-directory -j 3 lint types compiled
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# The bytecode of the tests, which else each of the processes compiles: seven seconds of CPU. What is wrong, they will say.
compiled: $(VENV)/.dev
	@$(BIN)/python -m pytest --collect-only -q >/dev/null 2>&1 || true

bench: $(VENV)/.dev
	$(BIN)/python bench/run.py

evaluate: $(VENV)/.dev
	PYTHONPATH=bench $(BIN)/python -m evaluate $(ARGS)
	PYTHONPATH=bench $(BIN)/python -m headroom --output docs/load-headroom.md

incident: $(VENV)/.dev
	PYTHONPATH=bench $(BIN)/python -m incident $(ARGS)

live: $(VENV)/.dev
	PYTHONPATH=bench $(BIN)/python -m live $(ARGS)

torture: $(VENV)/.dev
	PYTHONPATH=bench:tests/support $(BIN)/python -m torture $(ARGS)

device: $(VENV)/.dev
	bench/device/run.sh $(ARGS)

release: $(VENV)/.dev
	$(BIN)/python deploy/release.py $(DIST)

docs: $(VENV)/.run
	$(BIN)/python -m llm_headroom.commands.generated

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
