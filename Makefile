# One command from a fresh clone to a page: `make reproduce-per`. `make` alone lists the targets.
PYTHON ?= python3
SCALE  ?= quick
# By make's own functions, a folder with a space is two; what the shell reads is quoted, whatever it holds.
quoted  = '$(subst ','\'',$(1))'
data   := $(if $(DATA),$(DATA),$(REPRODUCE_DATA))
export REPRODUCE_DATA := $(if $(data),$(if $(filter /%,$(firstword $(data))),,$(CURDIR)/)$(data))

# Compiled anew in each process, torch and pandas take seven seconds to import instead of two.
unexport PYTHONDONTWRITEBYTECODE

venv   := .venv
ready  := $(venv)/.ready
python := $(venv)/bin/python
given   = $(if $($(1)),--$(2)=$(call quoted,$($(1))))
common := $(call given,SEEDS,seeds)
where  := $(call given,DEVICE,device) $(call given,JOBS,jobs)
some   := $(call given,ARMS,arms) $(call given,TASKS,tasks) $(call given,BUDGET,budget)
train  := $(call given,SCALE,scale) $(common) $(where) $(some)

# No target is a file but those of the environments, and many bear the name of a folder: each that is written here is
# phony, and so is each folder, so that make never says that there is nothing to be done.
targets := $(shell sed -nE 's/^([a-z][a-z-]*):.*/\1/p' $(MAKEFILE_LIST))
folders := $(filter-out $(targets),$(patsubst %/,%,$(wildcard */)))

.DEFAULT_GOAL := help
.PHONY: $(targets) $(folders) FORCE

help: ## show this list
	@echo "make reproduce-<method>   train, judge and write the page of one method"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { n = split($$2, word, " "); line = sprintf("make %-20s", $$1); \
		for (i = 1; i <= n; i++) { if (length(line " " word[i]) > 79) { print line; line = sprintf("%25s", "") } \
		line = line " " word[i] } print line }' $(MAKEFILE_LIST)
	@echo
	@echo "options: SCALE=quick|reduced|paper  SEEDS=0,1,2 or a number of seeds"
	@echo "         DEVICE=cpu|cuda  JOBS=n  DATA=folder with datasets"
	@echo "         BUDGET=9m: start only what will finish  ARMS=a,b  TASKS=t: only these"

$(ready): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version 2>&1) found, Python 3.11 or newer needed: make PYTHON=python3.12 ..."; exit 2; }
	@echo "setting up $(venv): torch, torchvision and the rest, about 6 GB, a few minutes"
	@$(PYTHON) -m venv $(venv)
	@$(python) -m pip install --quiet --disable-pip-version-check $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile) -c constraints.txt -e '.[$(or $(EXTRAS),test)]'
	@$(python) -c 'import reproduce.training.run, reproduce.report.render'  # compiles what is used, not all of it
	@touch $@

setup: $(ready) ## make .venv with the versions in constraints.txt
	@echo "$(venv) is ready"

list: $(ready) ## the methods and their experiments
	@$(python) -m reproduce list

reproduce-all: $(ready) ## every method, and one index page over them
	@$(python) -m reproduce run all $(train)

reproduce:
	@echo "which method? make reproduce-per, say, or make reproduce-all; there are:"
	@ls -d methods/[a-z]*/ | cut -d / -f 2 | paste -s -d ' ' - | fold -s -w 78 | sed 's/^/  /'
	@exit 2

reproduce-%: $(ready) FORCE
	@$(python) -m reproduce run $(call quoted,$*) $(train)

matrix: $(ready) ## train every method on the same tasks under one budget, and write runs/report/matrix.html
	@$(python) -m reproduce run all --only 'matrix_*' $(common) $(where)
	@$(python) -m reproduce report --results runs --output runs/report

reports: report
tests: test

$(folders):
	@echo "$@ is a folder, and no target: make help lists what can be made"; exit 2

report: $(ready) ## rebuild the committed pages in reports/ from reports/evidence/ alone
	@$(python) -m reproduce report

pytest = OMP_NUM_THREADS=1 $(venv)/bin/pytest -n auto --dist loadfile --no-loadscope-reorder

test: lint ## ruff, and the test suite but for its slow tests, with mypy and the layers among it
	@$(pytest) -m "not slow"

test-all: lint ## ruff and every test
	@$(pytest)

# The longest tests less, so that continuous integration is done in 15 minutes.
longest := tests/end_to_end/test_kills.py tests/end_to_end/test_torchrun.py \
	tests/unit/test_training_group.py tests/unit/test_verdict_rates.py tests/unit/test_cluster_kills.py \
	tests/end_to_end/test_bundle.py::test_killed_at_random_the_numbers_are_the_same \
	tests/end_to_end/test_new_method.py::test_a_new_method_passes_its_own_tests_and_the_battery_at_once \
	tests/unit/test_bench_check.py::test_the_command_on_the_cpu \
	tests/end_to_end/test_command_line.py::test_numbers_survive_interruption_and_death \
	tests/end_to_end/test_bundle.py::test_what_is_sealed_at_home_goes_along_and_is_not_trained_again \
	tests/unit/test_training_engines.py::test_a_killed_worker_costs_its_run_half_a_minute_and_no_other_anything \
	tests/unit/test_results_stats.py::test_a_gap_covers_the_truth_and_pairing_makes_it_shorter_where_seeds_go_together \
	tests/unit/test_results_scatter.py::test_independent_seeds_are_paired_no_oftener_than_the_level \
	tests/unit/test_integrations_lightning.py::test_two_processes_train_as_one_on_both_their_batches \
	tests/unit/test_training_malloc.py::test_large_tensors_reuse_their_pages \
	tests/unit/test_report_page.py::test_pages_are_the_same_without_docstrings

test-ci: lint ## as test-all, without the longest, and a sample of cases: what continuous integration runs
	@$(pytest) --sample $(addprefix --deselect ,$(longest))

coverage: $(ready) ## every test, and how much of reproduce/ and methods/ they run: at least 90 percent
	@$(pytest) --cov --cov-report=term

lint: $(ready) ## ruff
	@$(venv)/bin/ruff check .
	@$(venv)/bin/ruff format --check .

# The machine that is rented tomorrow may bring the oldest torch that pyproject.toml allows.
oldest := .venv-oldest
$(oldest)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(oldest)
	@grep -vE '^(torch|torchvision|triton|nvidia|cuda)' constraints.txt > $(oldest)/constraints.txt
	@sed -nE 's/^ *"(torch|torchvision)>=([0-9.]+)",.*/\1==\2.*/p' pyproject.toml > $(oldest)/torch.txt
	@$(oldest)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(oldest)/constraints.txt -r $(oldest)/torch.txt -e '.[test]'
	@touch $@

test-oldest: $(oldest)/.ready ## the battery, unit and method tests on the oldest torch that is allowed
	@$(oldest)/bin/python -c 'import torch; print("torch", torch.__version__)'
	@OMP_NUM_THREADS=1 $(oldest)/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
		--ignore tests/contract/test_types.py tests/contract tests/unit methods

cosmic-ray := $(venv)/.cosmic-ray
$(cosmic-ray): $(ready)
	@$(python) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,mutants]'
	@touch $@

mutants = OMP_NUM_THREADS=1 $(python) docs/mutants.py
mutants: $(cosmic-ray) ## change formulas, and see that tests notice: EACH=40 changes a file, FILE=one; docs/mutants.md
	@$(mutants) $(call given,EACH,each) $(call given,FILE,only)

soak: $(cosmic-ray) ## what takes hours: odd files (INPUTS=1000000), killed processes (KILLS=50), how verdicts err (DRAWS=2000), mutants
	@REPRODUCE_FUZZ=$(call quoted,$(or $(INPUTS),1000000)) OMP_NUM_THREADS=1 $(python) -m pytest tests/unit/test_odd_files.py
	@REPRODUCE_KILLS=$(call quoted,$(or $(KILLS),50)) REPRODUCE_GRID=60 REPRODUCE_SEEN=docs/reliability.json OMP_NUM_THREADS=1 \
		$(python) -m pytest -m fault tests
	@$(python) docs/reliability.py
	@OMP_NUM_THREADS=1 $(python) docs/verdicts.py $(call given,DRAWS,draws)
	@$(mutants) --each 3 --seed $$(date +%Y%m%d)

bench: $(ready) ## time every method against vanilla; ratios and JSON
	@$(python) -m reproduce bench $(call given,DEVICE,device)

doctor: $(ready) ## what is here: Python, torch, GPU, data, memory, disk, and how long it would train
	@$(python) -m reproduce doctor

check: $(ready) ## is this machine fit to train on: facts, every method beside the CPU, step times, runs side by side
	@$(python) -m reproduce check $(call given,DEVICE,device)

new-method: $(ready) ## a new method's folder: make new-method NAME=x KIND=activations|weights|network
	@$(python) -m reproduce new $(call given,KIND,kind) -- $(call quoted,$(NAME))

architecture: $(ready) ## redraw the layers in docs/architecture.md from the contracts in pyproject.toml
	@$(python) docs/architecture.py

references: $(ready) ## rewrite what is made from the code in docs/: tables of keys, JSON schemas, the table of faults
	@$(python) docs/references.py
	@$(python) docs/reliability.py
	@$(python) docs/mutants.py --page

scale: $(ready) ## recompute docs/scale.md, how long all runs take on many devices, from the evidence
	@$(python) docs/scale.py

docs: references ## build the documentation, strictly, into site/: open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict --quiet
	@echo "page: site/index.html"

clean: ## remove local results, caches and the environment; downloaded data stays
	rm -rf runs site $(venv) $(oldest) .pytest_cache .mypy_cache .ruff_cache .hypothesis
