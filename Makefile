# Two commands for a newcomer: `make quickstart` and `make test`. Each sets up .venv first if need be.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart multitask selection tutorial check test test-slow lint audit bench clean

quickstart: $(VENV)/installed
	$(BIN)/python quickstart.py

multitask: $(VENV)/installed
	$(BIN)/python quickstart.py --multitask

selection: $(VENV)/installed
	$(BIN)/python quickstart.py --selection

# Executes each chapter (or CHAPTERS="1 2") and stores what it shows; its trainings are in runs/tutorial/.
tutorial: $(VENV)/installed-for-tutorial
	$(BIN)/python docs/tutorial/build.py $(CHAPTERS)

test: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(VENV)/installed-for-slow-tests
	$(BIN)/python -m pytest -m slow
	KILLS=20 EXAMPLES=2000 $(BIN)/python -m pytest -n 3 -k "kills or killed_run or fuzz" -m "not slow"

# What has to pass before a change lands, the quickest first.
check: lint
	$(MAKE) test

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Looks up the known vulnerabilities of what is installed from the lists, on PyPI.
audit: $(VENV)/installed-for-audit
	for list in requirements*.txt */requirements.txt; do \
		$(BIN)/pip-audit --strict --no-deps --disable-pip -r $$list || exit 1; \
	done

# NANOGPT=path names a nanoGPT checkout to compare with; without one, the peer is transformers.
bench: $(VENV)/installed-for-benchmarks
	for name in throughput time_to_quality finetuning multitask ranking generation text scaling ablation adapters gpu; do \
		NANOGPT=$(NANOGPT) $(BIN)/python benchmarks/$$name.py || exit 1; \
	done

clean:
	rm -rf $(VENV) dataset_cache

$(VENV)/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-for-tests: tests/requirements.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet -r tests/requirements.txt
	touch $@

# 70 MB of experiment trackers, which no other target needs, and what the chapters of the tutorial need.
$(VENV)/installed-for-slow-tests: requirements-trackers.txt $(VENV)/installed-for-tests $(VENV)/installed-for-tutorial
	$(BIN)/python -m pip install --quiet -r requirements-trackers.txt
	touch $@

# 30 MB of notebook machinery and a checkpoint of 80 MB, which no other target needs.
$(VENV)/installed-for-tutorial: requirements-tutorial.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet -r requirements-tutorial.txt
	touch $@

$(VENV)/installed-for-audit: $(VENV)/installed
	$(BIN)/python -m pip install --quiet pip-audit
	touch $@

$(VENV)/installed-for-benchmarks: benchmarks/requirements.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	touch $@
