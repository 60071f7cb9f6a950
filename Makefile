# make repro   set up and run the pipeline on the shipped data and the default model
# make test    set up and run every check
# make chat    talk with the fine-tuned model; /base compares with the base model
# make report  everything of this experiment on one page
# make sweep   a small search over learning rate, epochs, masking and LoRA rank (long); ARGS="--help" tells how to set it
# make ui      the MLflow UI on http://127.0.0.1:5000
# make bench   time our stages against TRL, generate and others (long: training takes 25 minutes, answers 15); SCALE=1: also by size, to 1,000,000 rows
# make lock    resolve the dependencies of pyproject.toml anew into requirements.lock

SHELL := bash
.DELETE_ON_ERROR:
.PHONY: help setup repro test types tests chat report sweep ui bench lock
BIN := .venv/bin
# Stages are started as `python`: the environment's must come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

help:
	@sed -n 's/^# make/make/p' Makefile

setup: .venv/installed

.venv/installed: requirements.lock
	python3 -m venv .venv
	@echo "Installing dependencies into .venv (some minutes the first time) ..."
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	touch $@

repro: setup
	@git rev-parse --git-dir > /dev/null 2>&1 || { git init -q && echo "No Git repository here: made one, since DVC needs it; commit before you run experiments"; }
	dvc repro
	@python -m stages.experiment summary

test: setup
	ruff check .
	ruff format --check .
	@$(MAKE) --no-print-directory -j 2 types tests

types:
	mypy

tests:
	OMP_NUM_THREADS=1 pytest -n 3 --dist loadfile --no-loadscope-reorder

chat: setup
	@python -m stages.generate chat

report: setup
	@python -m stages.experiment report $(ARGS)

sweep: setup
	@python -m stages.experiment sweep $(ARGS)

ui: setup
	@echo "Runs: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning (Ctrl-C ends this)"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
	  mlflow server --workers 1 --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"

bench: setup .venv-bench/installed
	dvc repro -q tokenize-and-collate
	@python -m tests.benchmarks.run tokenizer
	@python -m tests.benchmarks.run prepare
	@python -m tests.benchmarks.run train
	dvc repro -q generate
	@python -m tests.benchmarks.run generate
	@$(if $(SCALE),python -m tests.benchmarks.run scale)

# TRL beside what is in .venv, so that torch is not there twice.
.venv-bench/installed: .venv/installed tests/benchmarks/requirements.txt
	python3 -m venv .venv-bench
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > "$$(.venv-bench/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth"
	.venv-bench/bin/python -m pip install -qq --disable-pip-version-check \
	  -c requirements.lock -r tests/benchmarks/requirements.txt
	touch $@

lock:
	rm -rf .venv-lock && python3 -m venv .venv-lock
	.venv-lock/bin/python -m pip install -qq "pip>=25.1"
	.venv-lock/bin/python -m pip install -qq --group dev $$(python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'])")
	.venv-lock/bin/python -m pip freeze --exclude pip | sed 's/+cpu$$//' > requirements.lock
	rm -rf .venv-lock
