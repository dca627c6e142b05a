# The front door. Bare `make` builds ./mamba; `make help` lists the rest.
# make omp | debug | fast are other builds of it: csrc/engine.mk says which; csrc/tests.mk has the C tests.

.DEFAULT_GOAL := engine
include csrc/tests.mk

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# Stages run the `python` of PATH. Analytics stay off: a build should not phone home.
ENV := PATH="$(CURDIR)/$(BIN):$$PATH" DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true
PYTEST := $(ENV) python -m pytest

.PHONY: help clean setup demo repro study seeds pixels track ui report rekey gate gate-speed summary promote kernels golden bench-train bench-engine instructions test test-slow test-python lint lint-workflows prose format wheel dist-engine dist-collect check-version check-lock

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

clean: tests-clean ## remove what the compiler made
	rm -rf build

setup: $(INSTALLED) ## make .venv with the pinned dependencies

# Torch goes first and alone, because its newest general build brings gigabytes of CUDA: a CPU build is taken where
# the package index has one. TORCH_INDEX names an index of torch builds, e.g. https://download.pytorch.org/whl/cpu
$(INSTALLED): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there), expected 3.11 or newer: make PYTHON=python3.12 setup" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then $(BIN)/pip install --index-url "$(TORCH_INDEX)" "$(TORCH)"; \
	else $(BIN)/pip install "$(TORCH)+cpu" || { \
	  echo "no CPU build of $(TORCH) here (above): taking the general one; TORCH_INDEX names another index"; \
	  $(BIN)/pip install "$(TORCH)"; }; fi
	$(BIN)/pip install -r requirements.txt
	@touch $@

demo: $(INSTALLED) engine ## run the whole pipeline on real digits that need no download, in a copy of the project
	@$(ENV) python -m pipeline.demo

repro: $(INSTALLED) ## run what has changed of the pipeline (MNIST, unless params.yaml says otherwise)
	@$(ENV) dvc repro

# Series go on where they were stopped; JOBS trainings at a time, each with one thread.
JOBS := $(shell nproc 2>/dev/null || echo 1)

study: $(INSTALLED) ## train what metrics/study.json lacks: one choice at a time, on validation images: hours
	@$(ENV) dvc repro prepare compile
	@$(ENV) python -m pipeline.study --jobs $(JOBS)

seeds: $(INSTALLED) ## train what metrics/seeds.json lacks: the final figures, five seeds each: hours
	@$(ENV) dvc repro prepare compile
	@$(ENV) python -m pipeline.seeds --jobs $(JOBS)

pixels: $(INSTALLED) ## train what metrics/pixels.json lacks: the image as 784 pixels in a row: two hours of a core
	@$(ENV) dvc repro prepare compile
	@$(ENV) python -m pipeline.seeds pixels --jobs $(JOBS)

track: $(INSTALLED) ## put the current results into MLflow again
	@$(ENV) dvc repro --single-item --force track

ui: $(INSTALLED) ## open MLflow on this project's runs
	@case "$${MLFLOW_TRACKING_URI:-}" in \
	  http://*|https://*) echo "MLflow is served at $$MLFLOW_TRACKING_URI";; \
	  *) $(ENV) mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}";; \
	esac

report: $(INSTALLED) ## one HTML page of all results and where they come from: build/report.html
	@$(ENV) python -m pipeline.report

rekey: $(INSTALLED) ## prove that this tree trains the same weights as BASE, then rename the keys of the recorded trainings
	@$(ENV) dvc repro prepare
	@$(ENV) python -m pipeline.rekey --base "$(BASE)"

# A recipe that fails is 2 to make; `python -m pipeline.release.gate` itself exits 0, 1 (worse) or 2 (no verdict).
BASE ?= origin/main

gate: $(INSTALLED) ## are these results as good as those of BASE=origin/main? Seconds
	@$(ENV) python -m pipeline.release.gate --base "$(BASE)" --output build/gate.md

gate-speed: $(INSTALLED) ## is this engine as fast as that of BASE=origin/main, built and run here? Minutes, needs valgrind
	@$(ENV) python -m pipeline.release.gate_speed --base "$(BASE)" --output build/gate-speed.md

# What CI shows of a change: the gates' pages where they were made, what moved, the plots (PLOTS_URL: where they are served).
summary: $(INSTALLED) ## build/summary.md: gates, and metrics and params beside BASE=origin/main
	@mkdir -p build
	@set -e; { cat build/gate.md build/gate-speed.md 2>/dev/null || true; \
	  echo "## Params beside $(BASE)"; $(ENV) dvc params diff --md "$(BASE)"; \
	  echo "## Metrics beside $(BASE)"; $(ENV) dvc metrics diff --md "$(BASE)"; \
	  if [ -n "$(PLOTS_URL)" ]; then for plot in plots/*.png; do echo "![$$plot]($(PLOTS_URL)/$$plot)"; done; fi; \
	} > build/summary.md; echo "build/summary.md"

promote: $(INSTALLED) ## after a passing gate: the champion in MLflow's registry, models/ with its card, the README's results
	@$(ENV) python -m pipeline.release.promote --base "$(BASE)" --output build/gate.md

kernels: $(INSTALLED) ## build the training kernels now (else they are built on first use)
	@$(ENV) PYTHONPATH=src python -c 'from mnist_mamba.scan import c_library; print(c_library.library_path(), kernel.isa())'

golden: $(INSTALLED) ## renew the activations that the C tests replay
	@$(ENV) PYTHONPATH=src python -m tests.tools.golden

bench-train: $(INSTALLED) ## time a training step beside other implementations: minutes, on a quiet machine
	@$(ENV) python -m benchmarks.train_step

bench-engine: $(INSTALLED) ## time the C engine beside PyTorch, torch.compile and ONNX Runtime: minutes, on a quiet machine
	@$(ENV) python -m benchmarks.engine

# valgrind knows no AVX-512. Counted is mamba_forward alone, without loading the file.
instructions: build/plain/mamba ## count the instructions of one image with valgrind: a figure without noise
	@command -v valgrind >/dev/null || { echo "error: valgrind is not there: install it" >&2; exit 1; }
	@for isa in avx2 scalar; do MAMBA_ISA=$$isa valgrind --tool=callgrind --callgrind-out-file=/dev/null \
	  --toggle-collect=mamba_forward build/plain/mamba models/mnist_mamba.bin models/example_input.bin 2>&1 >/dev/null | \
	  awk -v isa=$$isa '/Collected/ {n = $$4} END {if (!n) exit 1; print isa ": " n " instructions"}' || exit 1; done

test: $(INSTALLED) test-c test-python ## all fast tests, offline

test-python: $(INSTALLED)
	@$(PYTEST) -m "not slow" -n 2

test-slow: $(INSTALLED) ## the tests that take minutes
	@$(PYTEST) -m slow -n 2 --dist loadfile

lint: $(INSTALLED) ## style and types; changes nothing
	@$(ENV) ruff check . && $(ENV) ruff format --check . && $(ENV) mypy
	@$(ENV) clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h' '*.inc')
	@$(MAKE) --no-print-directory prose

prose: $(INSTALLED) ## check the words and the width of prose in FILES (default: all)
	@$(ENV) python -m tests.tools.prose $(FILES)
	@$(ENV) codespell $(or $(FILES),$$(git ls-files))

# zizmor comes with the environment; actionlint, a Go program, is used where it is.
lint-workflows: $(INSTALLED) ## GitHub's workflows: mistakes, and what could be attacked
	@$(ENV) zizmor --offline --quiet .github/workflows
	@if command -v actionlint >/dev/null; then actionlint; else echo "NOT RUN: actionlint, because it is not there"; fi

format: $(INSTALLED) ## rewrite the sources in the project's style
	@$(ENV) ruff check --fix . ; $(ENV) ruff format .
	@$(ENV) clang-format -i $$(git ls-files '*.c' '*.h' '*.inc')

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/mnist_mamba/__init__.py)
ENGINE_DIST = dist/mamba-$(VERSION)-$(shell uname -s | tr A-Z a-z)-$(shell uname -m)

wheel: $(INSTALLED) ## dist/: the Python package, which compiles its kernels where it is used
	@mkdir -p dist
	@$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

# Of the same files the same bytes, whoever packs them.
dist-engine: $(BUILD)/plain/mamba $(BUILD)/plain/libmamba.so ## dist/: command, library and header for this kind of machine
	@rm -rf "$(ENGINE_DIST)" && mkdir -p "$(ENGINE_DIST)"
	@cp $(BUILD)/plain/mamba $(BUILD)/plain/libmamba.so csrc/include/mamba.h csrc/README.md LICENSE "$(ENGINE_DIST)"
	@strip "$(ENGINE_DIST)/mamba" && strip --strip-unneeded "$(ENGINE_DIST)/libmamba.so"
	@tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C dist -cf - "$(notdir $(ENGINE_DIST))" | \
	  gzip -n > "$(ENGINE_DIST).tar.gz" && rm -r "$(ENGINE_DIST)"
	@ls "$(ENGINE_DIST).tar.gz"

dist-collect: ## dist/: what the folders in FROM hold, the model with its card, and the checksums of it all
	@test -d "$(FROM)" || { echo "error: FROM=$(FROM) is no folder: expected one with wheels, engines and report" >&2; exit 1; }
	@mkdir -p dist
	@find "$(FROM)" -not -path "dist/*" -type f \( -name '*.whl' -o -name '*.tar.gz' -o -name report.html \) -exec cp {} dist/ \;
	@cp models/mnist_mamba.bin models/example_input.bin dist/ && cp models/README.md dist/model-card.md
	@cd dist && rm -f SHA256SUMS && sha256sum * > SHA256SUMS && cat SHA256SUMS

check-version: ## is TAG this version's?
	@test "$(TAG)" = "v$(VERSION)" || { echo "error: the tag is $(TAG), expected v$(VERSION) as in src/mnist_mamba/__init__.py" >&2; exit 1; }

# The dry run always exits 0, so what it says is what counts.
check-lock: $(INSTALLED) ## does dvc.lock belong to these sources and params?
	@mkdir -p build
	@$(ENV) dvc repro --dry --allow-missing > build/lock.txt || { cat build/lock.txt; exit 1; }
	@if grep -q "Running stage" build/lock.txt; then cat build/lock.txt; \
	  echo "error: dvc.lock is stale: run 'make repro' and commit what it changes" >&2; exit 1; fi
	@echo "dvc.lock belongs to these sources and params"
