# `make run` and `make test` need only python3 (3.11 or newer): they set up .venv themselves. In the conda environment of
# environment.yml they use that one. Each target is one python command, for machines without make: README.md.
PYTHON ?= python3
CONFIG ?= config.yml
SET ?=
ENVIRONMENT = $(if $(filter pytorch_siamese,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),.venv)
READY = $(if $(filter .venv,$(ENVIRONMENT)),.venv/ready)
RUN = $(ENVIRONMENT)/bin/python

DATA ?= Data/Butterflies
BUDGET ?= 240
PHOTOGRAPHS ?=
WEIGHTS ?=
PAIRS ?= 128
CHECKPOINTS ?=
SEED ?= 0

.PHONY: run test pytest test-packages test-browser browser faults benchmark faithfulness notebooks lab lint

run: $(READY)  ## execute the notebooks; executed copies, figures, metrics and a report go to results_path
	$(RUN) -m utils run --config $(CONFIG) --set $(SET)

test: pytest lint  ## run all tests, then ruff

pytest: $(READY) test-packages  ## run all tests
	$(RUN) -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=10

test-packages: $(READY)  ## what tests and benchmarks need besides
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r tests/requirements.txt

test-browser: $(READY) test-packages browser  ## open pages and executed notebooks in Chromium
	$(RUN) -m pytest -q -rs tests/browser

browser: $(READY)  ## what test-browser needs, besides Debian's package chromium, or Chrome
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/browser/requirements.txt

faults: $(READY) test-packages  ## inject some 3,000 faults, read every kind of network, and count what comes of them: about an hour, to results/faults.md
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(RUN) -m faults --seed $(SEED)

benchmark: $(READY) test-packages  ## compare with the textbook procedure and pytorch-grad-cam: about half an hour, to results/benchmark.md
	$(RUN) -c 'from utils import ensure_sample; ensure_sample("$(DATA)")'
	PYTHONPATH=. $(RUN) tests/benchmarks --data $(DATA) --budget $(BUDGET) $(if $(PHOTOGRAPHS),--photographs $(PHOTOGRAPHS)) $(if $(WEIGHTS),--weights $(WEIGHTS))

faithfulness: $(READY) test-packages  ## how faithful heatmaps are, beside their peers: to results/faithfulness.md
	PYTHONPATH=. $(RUN) tests/benchmarks/believing.py --config $(CONFIG) --pairs $(PAIRS) $(if $(PHOTOGRAPHS),--photographs $(PHOTOGRAPHS)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(CHECKPOINTS),--checkpoints $(CHECKPOINTS))

notebooks: $(READY)  ## refresh the committed notebooks
	$(RUN) -m utils run --inplace

lab: $(READY)  ## open copies of the notebooks in JupyterLab
	$(RUN) -m utils lab --config $(CONFIG)

lint: $(READY) test-packages  ## check the code with ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is Python {sys.version.split()[0]}; 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
