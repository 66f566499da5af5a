# make run and make test do all the set-up themselves. PYTHON=/path/to/python3.11 chooses the interpreter.
.DEFAULT_GOAL := help
SHELL := /bin/sh
UV_VERSION := 0.13.9
DIST ?= dist
FLINK_JOB_SERVER_JAR ?= build/flink/job-server.jar
# Neither an activated environment nor a user's uv settings may redirect what is installed here.
unexport VIRTUAL_ENV
unexport UV_PROJECT_ENVIRONMENT
# Where it is set, as in many images, every process would compile the project's modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run test every-test check flink-test lint style types lock wheel docs

help: ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: .venv/.complete ## make the environment in .venv

run: .venv/.complete ## quickstart: MovieLens-100K, a local LLM, into runs/quickstart
	@.venv/bin/sllmr run --config configs/quickstart.yaml --output runs/quickstart

# A worker that crashes fails the tests: pytest-xdist can wait forever for the one that replaces it.
XDIST = --dist=loadscope --max-worker-restart=0

# The types are checked while the first tests run.
test: .venv/.complete style ## lint, types and every test, with the real local LLM; COVERAGE=1 prints the coverage
	@$(MAKE) --no-print-directory --jobs=2 types every-test

every-test: .venv/.complete
	@.venv/bin/python -m pytest --numprocesses=3 $(XDIST) --no-loadscope-reorder $(if $(COVERAGE),--cov --cov-report=term)

check: .venv/.complete lint ## lint, types and the fast tests, in under 90 s
	@.venv/bin/python -m pytest --numprocesses=2 $(XDIST) -m "not slow and not flink" -q

flink-test: .venv/.complete $(FLINK_JOB_SERVER_JAR) ## on Flink: a scoring job, and a run from tables to pushed model; needs Java and Maven
	@FLINK_JOB_SERVER_JAR=$(abspath $(FLINK_JOB_SERVER_JAR)) .venv/bin/python -m pytest -m flink

lint: style types

style: .venv/.complete
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/hadolint --ignore DL3008 deploy/Dockerfile

types: .venv/.complete
	@.venv/bin/mypy -p sllmr -p benchmarks -m local_runner -m kubeflow_runner
	@.venv/bin/deptry . 2>&1 | tail -n 20

lock: .venv/.complete ## renew uv.lock after a change of pyproject.toml
	@.uv/bin/uv lock

wheel: .venv/.complete ## build the wheel and its pinned requirements into dist
	@.uv/bin/uv build --quiet --wheel --out-dir $(DIST) .
	@.uv/bin/uv export --quiet --frozen --no-dev --no-emit-project --output-file $(DIST)/requirements.txt

# Maven checks each download by the repository's own sum; SHA256SUMS holds those of the files that were tested.
build/flink/job-server.jar: deploy/flink/pom.xml deploy/flink/SHA256SUMS
	@mvn --batch-mode --quiet -Dstyle.color=never --strict-checksums --file deploy/flink/pom.xml dependency:copy-dependencies
	@cd build/flink/lib && sha256sum --check --strict --quiet ../../../deploy/flink/SHA256SUMS
	@mvn --batch-mode --quiet -Dstyle.color=never --strict-checksums --file deploy/flink/pom.xml jar:jar
	@touch $@

docs: .venv/.complete ## build the documentation as a site into build/site
	@.venv/bin/python docs/generate.py
	@UV_PROJECT_ENVIRONMENT=.uv/docs .uv/bin/uv run --frozen --only-group docs mkdocs build --strict --quiet

# TFX installs a `tfx` of its own; ours, which knows `run create --pipeline_path`, takes its place. Bytecode is compiled
# here: where PYTHONDONTWRITEBYTECODE is set, as in many images, each later process would compile TensorFlow for seconds.
.venv/.complete: pyproject.toml uv.lock bin/tfx bin/check-needs
	@python=$$(bin/check-needs $(PYTHON)) || exit 1; \
	echo "setup: environment in .venv with $$python (about 4 GB, one to five minutes)"; \
	if ! .uv/bin/uv --version 2>/dev/null | grep -q ' $(UV_VERSION)'; then \
	  rm -rf .uv && "$$python" -m pip install --quiet --disable-pip-version-check --target .uv "uv==$(UV_VERSION)" || exit 1; \
	fi; \
	.uv/bin/uv sync --frozen --quiet --compile-bytecode --python "$$python" || exit 1; \
	ln -sf ../../bin/tfx .venv/bin/tfx
	@touch $@
