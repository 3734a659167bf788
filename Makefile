# Everything a newcomer types. Needs Python 3.11 or newer, make and a POSIX shell; the rest goes into .venv.

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=

# Two cores are shared by several Ray workers: one thread each, no lowered priority, no outside calls.
export RAY_USAGE_STATS_ENABLED = 0
TEST_ENV := OMP_NUM_THREADS=1 RAY_worker_niceness=0 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help install demo smoke unit test nightly lint format docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s  %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED)  ## make .venv and install everything into it, once

demo: $(INSTALLED)  ## the whole main job on the embedded corpus: data, training, a talking-head video
	$(BIN)/fedtalk demo --out runs/demo $(ARGS)

SMOKE := build/smoke
smoke: $(INSTALLED)  ## the main job at its smallest: drawn clips, one secure round of eight clients, a marked video
	rm -rf $(SMOKE)
	$(BIN)/fedtalk prepare --corpus synthetic --identities 9 --clips 2 --unseen 1 --out $(SMOKE)/shards
	$(BIN)/fedtalk train jobs/configs/grid.yaml shards=$(SMOKE)/shards run=$(SMOKE)/run 'phases=[faces]' rounds=1 \
		local.steps=2 local.identity_steps=1
	$(BIN)/fedtalk generate --run $(SMOKE)/run --shards $(SMOKE)/shards --reference id0008/clip0001 \
		--audio id0008/clip0001 --out $(SMOKE)/talk.mp4
	$(BIN)/fedtalk verify $(SMOKE)/talk.mp4

unit: $(INSTALLED)  ## the tests to run while you work: no Ray, no training, a minute
	$(TEST_ENV) $(BIN)/python -m pytest tests/unit -n 2 --dist loadfile $(ARGS)

# Tests on Ray wait for processes to start much of the time, so the others run beside them, behind: those on Ray have
# deadlines to meet. The last lines name what failed, so of tests on Ray that passed only the count is shown. pytest
# leaves with 5 where ARGS selects nothing.
test: $(INSTALLED)  ## all tests but the nightly ones (narrow it: make test ARGS="-k tdc")
	@mkdir -p build; $(TEST_ENV) $(BIN)/python -m pytest tests/ray $(ARGS) >build/tests-on-ray.log 2>&1 & ray=$$!; \
	$(TEST_ENV) nice -n 5 $(BIN)/python -m pytest tests/unit tests/slow -n 2 --dist loadfile $(ARGS); others=$$?; \
	echo "tests/ray, begun beside these, is at work"; wait $$ray; ray=$$?; \
	case $$ray in 0|5) tail -n 1 build/tests-on-ray.log ;; *) cat build/tests-on-ray.log ;; esac; \
	for left in $$ray $$others; do case $$left in 0|5) ;; *) exit $$left ;; esac; done

# FEDTALK_CASES=20000 and FEDTALK_LONG=1, for whom half a night is not too long: the numbers that docs/ tell of.
nightly: $(INSTALLED)  ## the long tests, and many more cases of the secure protocol
	$(TEST_ENV) FEDTALK_CASES=$${FEDTALK_CASES:-1000} $(BIN)/python -m pytest -n 2 --timeout 7200 -m "nightly or not nightly" \
		tests/slow/privacy/test_protocol_properties.py tests/slow/privacy/test_lying_server.py \
		tests/slow/coordinator/test_fuzzed_replies.py tests/slow/coordinator/test_silent_connections.py
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m nightly tests/unit tests/slow --deselect tests/slow/privacy
	$(TEST_ENV) $(BIN)/python -m pytest -m "nightly or not nightly" tests/nightly $(ARGS)
	$(TEST_ENV) $(BIN)/python -m pytest -m nightly tests/ray

lint: $(INSTALLED)  ## ruff, format and types, then the commit hooks; changes no file
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	@# The three above are commit hooks too.
	@if git rev-parse --git-dir >/dev/null 2>&1; then \
	SKIP=ruff-check,ruff-format,mypy $(BIN)/python -m pre_commit run --all-files; \
	else echo "no git checkout here: the commit hooks were not run"; fi

format: $(INSTALLED)  ## let ruff rewrite the code
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: $(INSTALLED)  ## the documentation as a site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

clean:  ## remove caches and build leftovers; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find fedtalk_ray jobs tests cluster docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "make: no Python 3.11 or newer on PATH; name one: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is not Python 3.11 or newer" >&2; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || { $(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot make a virtual environment (no ensurepip); on Debian: apt-get install python3-venv" >&2; exit 1; }; }
	@$(BIN)/python -c '' 2>/dev/null || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing into $(VENV); torch and Ray are large, so the first time takes some minutes"
	@# Quiet the second time: pip would list every package that is there already.
	@$(BIN)/python -m pip install $(if $(wildcard $(BIN)/fedtalk),-q) --disable-pip-version-check --root-user-action=ignore \
		-c constraints.txt -e '.[dev]'
	@touch $@
