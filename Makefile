# Each target first creates the environment it needs in .venv. Nothing outside this folder is changed.

PYTHON ?= python3
RUN ?= digits
ARGS ?=
FACTS ?= build/fault-facts

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: docs docs-site train-baseline diagnose optimize finalize auto status report smoke test test-process test-crash test-fuzz test-integrations coverage lint check bench bench-drift bench-executors bench-intervals mutants bench-faults bench-loops bench-logs bench-repair bench-variants bench-guard fit-ranker verify-faults healthy-ranges programs lock help

VENV := .venv
# Every experiment of conf/experiment, except the two that run through all phases.
EXPERIMENTS = $(filter-out digits digits_hot,$(basename $(notdir $(wildcard conf/experiment/*.yaml))))
TORCH := 2.13.0
READY := $(VENV)/.ready
# A new name starts the experiment of that name; an existing run continues from its frozen plan.
SUBJECT = $(if $(wildcard runs/$(RUN)/ledger.jsonl),run.name=$(RUN),experiment=$(RUN))
# make exits with 2 whatever failed, so that the last line of a target says with what the pipeline ended.
MEANING := case $$code in 1) m='fault of the program or the machine, or your code asked to exit';; 2) m='wrong input, or an error in your code';; \
  3) m='gate closed';; 4) m='only an approval is missing';; \
  130) m='interrupted; the same command continues';; *) m='killed or unknown';; esac
# Exit code 4 is not a failure: only an approval is missing, and the command has printed which.
STEP := step() { code=0; $(VENV)/bin/python -m pipeline "$$@" || code=$$?; [ $$code -eq 0 ] || { $(MEANING); \
  echo "pipeline exit code $$code: $$m" >&2; [ $$code -eq 4 ] || exit $$code; }; }; step

train-baseline: $(READY)  ## plan, then train and score the model: RUN=<experiment or existing run>
	@$(STEP) phase=baseline $(SUBJECT) $(ARGS)

diagnose: $(READY)  ## name possible causes why RUN misses its target
	@$(STEP) phase=diagnostics run.name=$(RUN) $(ARGS)

optimize: $(READY)  ## compare fixes for RUN; adopt the first that is significantly better and reaches the target
	@$(STEP) phase=optimization run.name=$(RUN) $(ARGS)

finalize: $(READY)  ## export RUN, evaluate the 24 release checks, and wait for the approval
	@$(STEP) phase=finalization run.name=$(RUN) $(ARGS)

auto: $(READY)  ## run the phases of RUN until a gate is closed or waits for a person, and name the page of the run
	@trap '[ ! -f runs/$(RUN)/report.html ] || echo "the page of this run: runs/$(RUN)/report.html"' EXIT; \
	$(STEP) phase=auto $(SUBJECT) $(ARGS)

status: $(READY)  ## show the state of RUN and the next command
	@$(STEP) status $(RUN) $(ARGS)

report: $(READY)  ## write report.html of RUN
	@$(STEP) report $(RUN) $(ARGS)

# The last gate waits for a person's approval (exit code 4). Any other exit code is a failure.
smoke: $(READY)  ## train every bundled experiment, and run all phases of digits and digits_hot, in a temporary folder
	@root=$$(mktemp -d); trap 'rm -rf "$$root"' EXIT; \
	for run in $(EXPERIMENTS); do \
	  $(STEP) phase=baseline experiment=$$run run.root="$$root" $(ARGS); \
	done; \
	$(STEP) phase=baseline --config-dir examples/bring_your_own/conf experiment=byo 'trust=[spirals]' run.root="$$root" $(ARGS); \
	for run in digits digits_hot; do \
	  code=0; $(VENV)/bin/python -m pipeline phase=auto experiment=$$run run.root="$$root" $(ARGS) || code=$$?; \
	  [ $$code -eq 4 ] || { echo "smoke: $$run ended with exit code $$code; expected 4, since the last gate waits for an approval" >&2; exit 1; }; \
	  grep -q '"phase":"finalization".*"kind":"gate.decided"' "$$root/$$run/ledger.jsonl" || { echo "smoke: $$run stopped before finalization" >&2; exit 1; }; \
	  $(STEP) verify "$$root/$$run"; \
	done; echo "smoke: every experiment was trained, two wait for the approval of their release, and their ledgers verify"

# One thread per test process. Plain `pytest` runs every test.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

test: $(READY)  ## the quick tests on all cores: under five minutes on two cores
	@$(PYTEST) -n auto --dist worksteal -m "not slow and not process and not fuzz and not integration" $(ARGS)

test-process: $(READY)  ## the tests that start processes: commands, interrupts, kills, the wheel
	@$(PYTEST) -n auto -m "process and not slow and not fuzz and not integration" $(ARGS)

coverage: $(READY)  ## both sets of tests, with line coverage of at least 90 %
	@$(PYTEST) -n auto --dist worksteal -m "not slow and not fuzz and not integration" --cov --cov-fail-under=90 $(ARGS)

# Each battery ends with one line. 300 kills without a failure bound the failure rate at 1 %, with 95 % confidence.
BATTERIES := tests/test_phase_kills.py tests/test_study_kills.py tests/test_finalization_kills.py tests/test_kill.py tests/test_purity.py \
  tests/test_fault_points.py tests/test_tracker_faults.py tests/test_named_mutants.py
test-crash: $(READY)  ## 300 SIGKILLs in all five phases, each fault of the disk, broken trackers, named mutants, slow tests
	@FIVEGATE_KILLS=300 $(PYTEST) -s -m "" $(BATTERIES) $(ARGS)
	@$(PYTEST) -n auto -m "(slow or hypothesis) and not fuzz" --hypothesis-profile=thorough $(addprefix --ignore=,$(BATTERIES)) $(ARGS)

# A seed that failed is tried again with FIVEGATE_FUZZ_SEED=<seed> make test-fuzz ARGS='-k <parser>'.
test-fuzz: $(READY)  ## every parser with damaged files, ten minutes in all, in less than 1 GB of memory
	@[ -d $(INTEGRATIONS)/packages/pyarrow ] || \
	  $(VENV)/bin/python -m pip --disable-pip-version-check -q install --no-deps --target $(INTEGRATIONS)/packages pyarrow || \
	  echo "pyarrow cannot be installed: the project's own tables are read instead" >&2
	@$(PYTEST) -s -m fuzz tests/test_fuzz.py $(ARGS)

test-integrations: $(READY)  ## serve released models in MLflow and node, watch Lightning and transformers, compare attacks with ART, read Parquet, train on a Ray cluster: installs them into .integrations
	@$(INSTALL_INTEGRATIONS)
	@$(PYTEST) -m integration $(ARGS)
	@[ ! -x $(TRAINERS)/bin/python ] || $(TRAINERS)/bin/python -m pytest -q -m integration tests/test_trainers.py tests/test_examples.py

# The browser of the machine is taken where there is one. SHOW='runs/digits ...' tries the pages of these runs too, and
# SCREENSHOTS=DIR keeps their pictures.
SHOW ?=
SCREENSHOTS ?=
empty :=
.PHONY: test-page
test-page: $(READY)  ## the page of a run in headless Chromium: no console message, every section, no overflow at 360 and 1440 px
	@mkdir -p $(INTEGRATIONS)/page $(SCREENSHOTS)
	@[ -d $(INTEGRATIONS)/page/playwright ] || $(VENV)/bin/python -m pip --disable-pip-version-check -q install --target $(INTEGRATIONS)/page playwright
	@command -v chromium chromium-browser google-chrome >/dev/null || PYTHONPATH=$(INTEGRATIONS)/page $(VENV)/bin/python -m playwright install chromium
	@FIVEGATE_SHOW='$(subst $(empty) $(empty),:,$(strip $(SHOW)))' FIVEGATE_SCREENSHOTS='$(SCREENSHOTS)' $(PYTEST) -m integration tests/test_page_in_browser.py $(ARGS)

# What these tests need and the project does not, apart from .venv. What cannot be installed is skipped with its reason.
# --ignore-scripts: the package of npm has its library, and its script fetches the one for CUDA.
INTEGRATIONS := .integrations
TRAINERS := $(INTEGRATIONS)/trainers
# The trainers have an environment of their own, with newer versions of what they share with the project before its rest.
PACKAGES_OF = -c "import sysconfig; print(sysconfig.get_path('purelib'))"
INSTALL_INTEGRATIONS = pip="$(VENV)/bin/python -m pip --disable-pip-version-check -q"; folder=$(INTEGRATIONS); mkdir -p $$folder; \
  skinny=$$($(VENV)/bin/python -c 'from importlib.metadata import version; print(version("mlflow-skinny"))'); \
  [ -x $$folder/mlflow/bin/mlflow ] || { $(VENV)/bin/python -m venv --clear $$folder/mlflow && \
    $$folder/mlflow/bin/python -m pip --disable-pip-version-check -q install mlflow==$$skinny onnx onnxruntime; } || \
    echo "mlflow cannot be installed" >&2; \
  { [ -d $$folder/packages/art ] && [ -d $$folder/packages/pyarrow ] && [ -d $$folder/packages/tensorboard ]; } || \
    $$pip install --no-deps --upgrade --target $$folder/packages pyarrow adversarial-robustness-toolbox six tqdm \
      tensorboard absl-py grpcio markdown werkzeug || echo "pyarrow, ART and tensorboard cannot be installed" >&2; \
  [ -d $$folder/packages/ray ] || $$pip install --no-deps --upgrade --target $$folder/packages ray msgpack || \
    echo "Ray cannot be installed" >&2; \
  [ -x $(TRAINERS)/bin/python ] || { $(VENV)/bin/python -m venv --clear $(TRAINERS) && \
    $(VENV)/bin/python $(PACKAGES_OF) >$$($(TRAINERS)/bin/python $(PACKAGES_OF))/project.pth && \
    $(TRAINERS)/bin/python -m pip --disable-pip-version-check -q install lightning transformers accelerate nbclient ipykernel; } || \
    echo "Lightning and transformers cannot be installed" >&2; \
  [ -d $$folder/node_modules/onnxruntime-node ] || \
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix $$folder onnxruntime-node || \
    echo "onnxruntime-node cannot be installed" >&2

lint: $(READY)  ## ruff, mypy, import-linter
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo

check: lint test  ## lint, then test

docs: $(READY)  ## write the generated pages of docs/ again
	@PYTHONPATH=. $(VENV)/bin/python docs/generate.py

# mkdocs is not in the lock: only the site needs it.
docs-site: docs  ## build the site of docs/ with strict links: build/site/index.html
	@$(VENV)/bin/python -c 'import mkdocs' 2>/dev/null || $(VENV)/bin/python -m pip install -q --disable-pip-version-check '.[docs]' -c requirements.lock
	@$(VENV)/bin/python -m mkdocs build --strict --quiet && echo "build/site/index.html"

mutants: $(READY)  ## make 60 small changes to the code and print those that its tests miss: ARGS='--unit ledger'
	@$(VENV)/bin/python benchmarks/mutants.py $(ARGS)

bench-faults: $(READY)  ## score the diagnoses on the fault benchmark: ARGS='--sample 5 --repairs'
	@$(VENV)/bin/python benchmarks/faults/bench.py $(ARGS)

bench-repair: $(READY)  ## mend the mendable cases of the fault benchmark, and count what holds: ARGS='--sample 5'
	@$(VENV)/bin/python benchmarks/faults/bench_repair.py $(ARGS)

bench-loops: $(READY)  ## score the diagnoses of loops that Fivegate did not run: ARGS='--part tuning'
	@$(VENV)/bin/python benchmarks/faults/bench_foreign.py loops $(ARGS)

bench-logs: $(READY)  ## score the diagnoses of their logs in the formats of twenty-five programs: ARGS='--again DIR'
	@$(VENV)/bin/python benchmarks/faults/bench_foreign.py logs $(ARGS)

bench-variants: $(READY)  ## accuse healthy variants and mutants of the tuning part's experiments: FACTS=DIR ARGS='--sample 10'
	@$(VENV)/bin/python benchmarks/faults/variants.py --facts $(FACTS) $(ARGS)

bench-guard: $(READY)  ## how often trainer.guard would end healthy and faulty runs of the fault benchmark: FACTS=DIR
	@$(VENV)/bin/python benchmarks/faults/live_guard.py $(FACTS)

fit-ranker: $(READY)  ## train the tuning part of the fault benchmark and fit diagnostics/ranker.yaml: FACTS=DIR keeps its facts
	$(VENV)/bin/python benchmarks/faults/bench.py --part tuning --facts $(FACTS) $(ARGS)
	$(VENV)/bin/python benchmarks/faults/fit_ranker.py $(FACTS)

verify-faults: $(READY)  ## train every case of the fault benchmark with ten seeds and compare it with its label
	@$(VENV)/bin/python benchmarks/faults/verify.py $(ARGS)

healthy-ranges: $(READY)  ## measure what healthy trainings look like at rest: pipeline/inspection/healthy.yaml
	@$(VENV)/bin/python benchmarks/faults/healthy_ranges.py $(ARGS)

programs: $(READY)  ## run the thirty programs of examples/programs as scripts and in the pipeline, and write their table
	@$(VENV)/bin/python benchmarks/programs.py $(ARGS)

bench: $(READY)  ## time the engine and plain loops: ARGS='--pair', '--startup', '--monitor' or '--long 1000000'
	@$(VENV)/bin/python benchmarks/engine.py $(ARGS)

bench-executors: $(READY)  ## trials per hour of two workers and of one, on a machine that does nothing else: ARGS='--executor ray'
	@$(VENV)/bin/python benchmarks/executors.py $(ARGS)

bench-drift: $(READY)  ## how often a shifted half of each bundled set is found, and an unshifted one raises an alarm
	@OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/drift.py $(ARGS)

bench-intervals: $(READY)  ## how often each 95 % interval contains the true value, by simulation: ARGS='--only roc_auc'
	@OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/intervals.py $(ARGS)

# With the lowest supported Python: versions that work there also work with later ones.
lock:  ## update requirements.lock from pyproject.toml: make lock PYTHON=python3.11
	@$(call supported,11,11)
	@new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; $(PYTHON) -m venv "$$new"; \
	$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*p["dependencies"], *(e for name, extra in p["optional-dependencies"].items() if name not in ("ray", "parquet", "tensorboard", "mlflow", "docs", "notebook") for e in extra), sep="\n")' > "$$new/wanted"; \
	"$$new/bin/python" -m pip install -qq -r "$$new/wanted" torch==$(TORCH); \
	{ echo "# make lock PYTHON=python3.11"; \
	  echo "# Exact pins for CPython 3.11, 3.12 and 3.13. The CUDA packages are omitted, since torch pins its own."; \
	  "$$new/bin/python" -m pip freeze --all | sed -E '/^(pip|triton|nvidia-|cuda-)/d; s/\+[a-z0-9.]+$$//'; \
	} > "$$new/lock"; cp "$$new/lock" requirements.lock

help:  ## show this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo "  RUN=<run> (default: $(RUN)), ARGS='<overrides or options>', PYTHON=<interpreter for .venv> (default: $(PYTHON))"

$(READY): requirements.lock pyproject.toml
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
	  $(call supported,11,13) && \
	  echo "Creating $(VENV) with $$($(PYTHON) --version): this takes a few minutes, once" >&2 && $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing $$(grep -c '==' requirements.lock) packages of requirements.lock into $(VENV); the first time, this downloads about 1 GB" >&2
	@$(VENV)/bin/python -m pip install --progress-bar off --disable-pip-version-check -r requirements.lock \
	  | sed -un 's/^ *Downloading \([^ ]*\) (\(.*\))/  downloading \1 (\2)/p; s/^Installing collected.*/  unpacking them all/p' >&2
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e . \
	  --config-settings editable_mode=compat  # a plain .pth path: the default import hook costs 10 ms at every start
	@touch $@

# $(call supported,11,13): exits with one message unless PYTHON is CPython 3.11 to 3.13.
define supported
{ $(PYTHON) -c 'import sys; sys.exit(not (3, $(1)) <= sys.version_info[:2] <= (3, $(2)))' 2>/dev/null || { \
  echo "PYTHON: this interpreter is not supported, got $(PYTHON) ($$($(PYTHON) --version 2>&1 | tail -n 1));" \
    "expected CPython 3.$(1)$(if $(filter-out $(1),$(2)), to 3.$(2))  Do: make $(or $(MAKECMDGOALS),help) PYTHON=python3.$(1)" >&2; exit 2; }; }
endef
