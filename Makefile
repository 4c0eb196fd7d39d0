# Two commands: `make book` and `make test`. Both set up .venv by themselves, once.
# `make help` lists the others.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Small networks gain nothing from threads and lose much when threads outnumber free cores.
export OMP_NUM_THREADS ?= 1

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Where a GPU is, there may be no net to set up .venv from: `make gpu` takes what python3 has.
DEVICE ?= cuda
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_RESULTS ?= _build/gpu

.PHONY: book help test coverage test-all test-browser test-slow mutants lint lab pdf links notebooks picture bench gpu clean

book: $(READY)  ## execute missing or stale chapters, build the book, print where to open it
	$(BIN)/pai book

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' Makefile

test: $(READY)  ## every test: library, doctests, and the stored outputs of the notebooks
	$(BIN)/python -m pytest -n 2 --dist worksteal
	TQDM_DISABLE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval-lax notebooks

coverage: $(READY)  ## which lines of the library no test of it runs
	$(BIN)/coverage run --source=pai_lib --data-file=_build/coverage -m pytest
	$(BIN)/coverage report --data-file=_build/coverage --show-missing --skip-covered

test-all: lint test book test-browser pdf test-slow  ## everything
	$(MAKE) gpu DEVICE=cpu QUICK=1

test-browser: book  ## the built pages in Chromium (Debian's package chromium, or PAI_CHROMIUM=/path/to/it)
	@test -n "$(PAI_CHROMIUM)" || command -v chromium || { echo "Chromium is needed: apt-get install chromium"; exit 1; }
	$(INSTALL) -e '.[browser]'
	$(BIN)/python -m pytest -m browser tests/browser

test-slow: $(READY)  ## sweeps that are killed, Dask workers that die: minutes
	$(INSTALL) -e '.[cluster]'
	$(BIN)/python -m pytest -m slow -n 2 tests/experiments/test_killed_sweeps.py

mutants: $(READY)  ## change the core in one place at a time and see a test fail: SAMPLE=200 mutants of SEED=0, hours
	$(BIN)/python tests/mutants.py --sample $(or $(SAMPLE),200) --seed $(or $(SEED),0)

lint: $(READY)  ## style, docstrings, formatting, types, workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

notebooks: $(READY)  ## re-execute the notebook sources and refresh the outputs that tests compare
	$(BIN)/pai notebooks

lab: $(READY)  ## open the notebooks in JupyterLab, with this project's kernel
	$(INSTALL) -e '.[lab]'
	$(BIN)/jupyter lab notebooks

pdf: book  ## the whole book as _build/book.pdf (Chromium, as for test-browser)
	$(INSTALL) -e '.[pdf]'
	$(BIN)/python book/print.py

bench: $(READY)  ## time and memory of the estimators beside their peers: a quarter of an hour
	$(INSTALL) -e '.[bench]'
	$(BIN)/python benchmarks/curvature.py --json _build/benchmarks/curvature.json

gpu:  ## all that needs a GPU in 9 minutes: tests, timings, notebooks, runs; JSON in GPU_RESULTS=FOLDER
	$(GPU_PYTHON) benchmarks/gpu.py --device $(DEVICE) --json $(GPU_RESULTS) $(if $(QUICK),--quick)

links: $(READY)  ## open every link of the book: this alone needs the net
	$(BIN)/jupyter-book build . --builder linkcheck -q

picture: $(READY)  ## draw the README's figure from the committed records
	$(BIN)/python -c "from pai_lib import Store; from pai_lib.analysis import accuracy_figures, figures, protocols; figures.use_style(); frame = Store().frame(); words, rows = protocols.by_protocol(frame[frame.dataset == 'cifar10'])[0]; \
	accuracy_figures.against_sparsity(rows, words)[0].savefig('book/_static/readme.png', bbox_inches='tight', dpi=130)"

clean:  ## remove built pages and executed chapters; keeps .venv, data, results and your runs
	rm -rf _build book/*.ipynb .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or later is needed, this is {v.major}.{v.minor}: make PYTHON=python3.12 ..." or 0)'
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[book,test]'
	@touch $@
