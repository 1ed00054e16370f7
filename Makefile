# Everything here sets up what it needs: a virtual environment in .venv, and the starter model in .cache.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/SmolLM2-135M-Instruct.Q4_1.gguf
MINUTES ?= 10

.PHONY: help demo demo-stop test test-long soak lint run bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

demo: $(VENV)/.installed $(MODEL) ## start the daemon, bring in the starter model, ask it something
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/demo/demo.sh $(MODEL)

demo-stop: ## stop the demo's daemon
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/demo/demo.sh --stop

# They start real processes, beside each other: what failed for want of a processor must pass by itself.
test: $(VENV)/.dev $(MODEL) ## all tests but the long ones
	$(BIN)/python -m pytest -m "not long" --numprocesses logical --maxprocesses 4 --dist loadfile \
		|| $(BIN)/python -m pytest -m "not long" --last-failed --last-failed-no-failures none

test-long: $(VENV)/.dev $(MODEL) ## the tests that take minutes
	$(BIN)/python -m pytest -m long

soak: $(VENV)/.dev $(MODEL) ## mixed, rude and faulty use for MINUTES=10, and what must not be left of it; SEED=1 repeats one
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(SOAK)

lint: $(VENV)/.dev ## format, lint, types, import contracts
	$(BIN)/ruff format --check && $(BIN)/ruff check && $(BIN)/mypy && $(BIN)/lint-imports

run: $(VENV)/.installed ## the daemon in the foreground
	$(BIN)/osaurusd serve

bench: $(VENV)/.dev $(MODEL) ## measure against mlx_lm.server, and start-up; ten minutes
	$(BIN)/python -m tests.bench $(BENCH)

clean: ## remove what the targets above made
	rm -rf $(VENV) .cache .demo dist

$(VENV)/.python:
	@echo "Setting up Python in $(VENV) ..."
	@sh .ci/venv "$(PYTHON)" $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml
	@echo "Installing osaurusd and what it needs ..."
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "Installing what tests and linters need ..."
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(MODEL): | $(VENV)/.python
	@echo "Downloading the starter model (90 MB) ..."
	@$(BIN)/python tests/starter_model.py
