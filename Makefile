# Three commands for newcomers: `make demo`, `make serve` and `make test`. Each sets up .venv by itself, and works twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS := results/pocket

.PHONY: demo serve test test-slow test-service test-vllm lint types unit fuzz format report mini-train mini-report words pocket clean

demo: $(READY)  ## edit one fact in a real vision-language model
	$(BIN)/unike demo

serve: $(READY)  ## the studio and OpenAI's API, with the bundled model; builds it on first use
	$(BIN)/unike serve --model mini --store store --studio

test: lint  ## lint, types and tests
	$(MAKE) -j2 types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadscope --no-loadscope-reorder

test-slow: $(READY)  ## what takes minutes
	$(BIN)/pytest -q -m slow
	KILLS=200 OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/unit/store/test_kills.py

test-service: $(READY)  ## what needs PostgreSQL, Chromium or Ray; installs them where it may
	sh scripts/service/install.sh
	$(BIN)/pip install --quiet -e ".[ray]" -c constraints.txt || echo "left out what needs Ray: it could not be installed"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m service -rs

test-vllm:  ## edits in vLLM against transformers, on a CPU, in an environment of its own (3.5 GB); some minutes
	PYTHON=$(PYTHON) sh scripts/vllm/install.sh .cache/vllm
	VLLM_LOGGING_LEVEL=ERROR OMP_NUM_THREADS=1 .cache/vllm/bin/python scripts/vllm/compare.py --out .cache/vllm-compared

fuzz: $(READY)  ## 10,000 damaged inputs of every class; about four minutes
	FUZZ=10000 OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/fuzz

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

report: $(READY)  ## a page of all runs, figures and failed cases, and the tables that are kept beside it; two minutes
	for kind in md csv html; do \
		$(BIN)/unike report $(RUNS) --format $$kind --out $(RUNS)/report.$$kind || exit 1; \
	done

mini-train: $(READY)  ## train the bundled model's adapter; resumes; about an hour on 2 cores
	$(BIN)/python scripts/mini/parts.py --out .cache/mini
	$(BIN)/python scripts/mini/features.py --weights .cache/mini/lite0.pth --out .cache/mini/features.safetensors
	$(BIN)/python scripts/mini/train.py --llm .cache/mini/llm --features .cache/mini/features.safetensors --out .cache/mini
	cp .cache/mini/mini_adapter.safetensors src/unike/backbones/families/mini_adapter.safetensors
	cp .cache/mini/train_log.jsonl results/mini/train_log.jsonl

mini-report: $(READY)  ## what the bundled model knows, on pictures it never saw
	$(BIN)/python scripts/mini/evaluate.py --out results/mini/accuracy.json

words: $(READY)  ## train the network that tells what a question asks; about half an hour
	$(BIN)/python scripts/gate/words.py
	$(BIN)/python scripts/gate/follows.py

pocket: $(READY)  ## rebuild PocketEdit: make pocket PHOTOS=folder-of-caltech-101
	$(BIN)/pip install --quiet -e ".[data]" -c constraints.txt
	$(BIN)/python scripts/pocket/build.py --photos $(PHOTOS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e ".[dev]" -c constraints.txt
	touch $(READY)

clean:
	rm -rf $(VENV) .cache build
