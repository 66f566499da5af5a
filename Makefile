# make run and make test do all the set-up themselves. PYTHON=/path/to/python3.11 chooses the interpreter.
.DEFAULT_GOAL := help
SHELL := /bin/sh
UV_VERSION := 0.13.9
# Neither an activated environment nor a user's uv settings may redirect what is installed here.
unexport VIRTUAL_ENV
unexport UV_PROJECT_ENVIRONMENT

.PHONY: help setup run test lint lock

help: ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

setup: .venv/.complete ## make the environment in .venv

run: .venv/.complete ## quickstart: MovieLens-100K, a local LLM, into runs/quickstart
	@.venv/bin/sllmr run --config configs/quickstart.yaml --output runs/quickstart

test: .venv/.complete lint ## lint, types and every test, with the real local LLM
	@.venv/bin/python -m pytest

lint: .venv/.complete
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy pipeline components models local_runner.py

lock: .venv/.complete ## renew uv.lock after a change of pyproject.toml
	@.uv/bin/uv lock

# TFX installs a `tfx` of its own; ours, which knows `run create --pipeline_path`, takes its place.
.venv/.complete: pyproject.toml uv.lock $(wildcard third_party/*/pyproject.toml) bin/tfx bin/check-needs
	@python=$$(bin/check-needs $(PYTHON)) || exit 1; \
	echo "setup: environment in .venv with $$python (about 3 GB, one to five minutes)"; \
	if ! .uv/bin/uv --version 2>/dev/null | grep -q ' $(UV_VERSION)'; then \
	  rm -rf .uv && "$$python" -m pip install --quiet --disable-pip-version-check --target .uv "uv==$(UV_VERSION)" || exit 1; \
	fi; \
	.uv/bin/uv sync --frozen --quiet --python "$$python" || exit 1; \
	ln -sf ../../bin/tfx .venv/bin/tfx
	@touch $@
