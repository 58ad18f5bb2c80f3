# The project's own commands. Needs Python 3.11 or newer, git and make; everything else is
# installed into .venv by the first command that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# MLflow starts `python` and `uvicorn` by name, so the environment comes first on PATH; what the
# user's shell finds, and where it is, are kept for the commands that a run prints at its end.
export DERMALYZE_SHELL_PATH := $(PATH)
export DERMALYZE_SHELL_FOLDER := $(PWD)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help install demo retrain reference test slow lint check scale-check tracking-stack bench \
	kill-campaign fix clean

help:
	@echo "make demo   train, export and register a model on drawn demo data"
	@echo "make reference  train the model in this package again; DATA=folder of HAM10000; hours, can be stopped"
	@echo "make test   the quick tests"
	@echo "make check  quick tests, linters, type checker, import contracts, slow tests"
	@echo "make scale-check  all tests on several processes and real servers; under 15 minutes on two cores"
	@echo "make tracking-stack  MLflow on PostgreSQL and S3, here, until Ctrl-C; STACK=folder"
	@echo "make bench  every figure of docs/performance.md; DATA=folder for other data than auto"
	@echo "make kill-campaign  SIGKILL at random moments of every phase; MOMENTS=20 SEED=0 PHASES=..."
	@echo "make fix    format, and fix what the linter can"

install: $(READY)

$(READY): $(wildcard requirements*.txt) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

# Trained once, and again when the code, the settings or the store have changed.
DEMO := .dermalyze/demo-is-trained
demo: $(DEMO)
	@echo "the demo model exists: see it with mlflow ui; make demo trains again if code, settings or store change, or after rm $(DEMO)"

$(DEMO): $(READY) configs/demo.yaml $(shell find dermalyze serving -name "*.py") $(if $(wildcard mlflow.db),,retrain)
	mlflow run . --env-manager local -P size=small -P data_dir=demo
	@touch $(DEMO)

retrain:

# Two files at a time, each with one core for its computing: most of it is Python, and waiting.
test: $(READY)
	OMP_NUM_THREADS=1 python -m pytest -q -m "not slow" -n 2 --dist loadfile

slow: $(READY)
	OMP_NUM_THREADS=1 python -m pytest -q -m "slow and not scale" -n 2 --dist loadfile --durations 25

lint: $(READY)
	ruff format --check .
	ruff check .
	mypy
	lint-imports

check: test lint slow

SCALE := $(wildcard tests/scale tests/workflows/test_score.py tests/training/test_distributed.py)
scale-check: $(READY)
	OMP_NUM_THREADS=1 python -m pytest -q $(SCALE) -n 2 --dist loadfile --durations 25

STACK ?= .dermalyze/tracking-stack
tracking-stack: $(READY)
	python deploy/tracking_stack.py $(STACK)

# Alone on the machine, or the figures mean nothing. PLUGIN=file: a module with gluon_mobilenetv2.
DATA ?= auto
bench: $(READY)
	python -m benchmarks.prepare --data-dir $(DATA)
	python -m benchmarks.train --data-dir $(DATA) $(if $(PLUGIN),--plugin $(PLUGIN)) --rounds 2
	python -m benchmarks.epochs
	python -m benchmarks.step_cost
	python -m benchmarks.predict --data-dir $(DATA)
	python -m benchmarks.startup
	python -m benchmarks.intervals
	python -m benchmarks.int8
	python -m benchmarks.service --data-dir $(DATA) --soak 600

# Stopped, it continues with the same command.
reference: $(READY)
	test -f build/reference/model.onnx || dermalyze train --config configs/reference.yaml \
		--data-dir $(DATA) --no-tracking --output build/reference
	python -m benchmarks.reference build/reference

MOMENTS ?= 20
SEED ?= 0
kill-campaign: $(READY)
	python -m benchmarks.kill_campaign --moments $(MOMENTS) --seed $(SEED) $(if $(PHASES),--phases $(PHASES))

fix: $(READY)
	ruff check --fix .
	ruff format .

clean:
	rm -rf $(VENV) .dermalyze build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
