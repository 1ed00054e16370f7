# Every target sets up what it needs: a virtual environment in .venv and the starter model in .cache.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
MODEL = .cache/SmolLM2-135M-Instruct.Q4_1.gguf
EMBEDDER = .cache/all-minilm-l6-v2/config.json
UI = osaurusd/ui/frontend
MINUTES ?= 10
PIP_INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Two more than the CPUs: tests wait for other processes, too. At most 4, because each loads models.
PROCESSES ?= $(shell $(BIN)/python -c "import os; print(min(4, (os.cpu_count() or 1) + 2))")
PYTEST = -m "not long and not clients" --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

# Tests start hundreds of processes, which share compiled modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-stop test test-long test-clients client-locks test-mac coverage ui soak soak-distributed lint format docs run bench screenshot screenshots check-recommended dist constraints man clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed $(MODEL) ## Start a daemon, import the starter model and chat with it
	@PATH="$$PWD/$(BIN):$$PATH" sh tests/demo/demo.sh $(MODEL)

demo-stop: ## Stop the demo daemon
	@PATH="$$PWD/$(BIN):$$PATH" sh tests/demo/demo.sh --stop

test: $(VENV)/.dev $(MODEL) $(EMBEDDER) ## Run the tests, except those marked "long"
	$(BIN)/python -m pytest $(PYTEST)

test-long: $(VENV)/.dev $(MODEL) $(EMBEDDER) ## Run the tests marked "long"
	$(BIN)/python -m pytest -m long

test-clients: $(VENV)/.dev $(MODEL) ## Run the tests with client programs, which they install in .cache (2 GB)
	$(BIN)/python -m pytest -m clients tests/clients

coverage: $(VENV)/.dev $(MODEL) $(EMBEDDER) ## Run the tests and report coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-mac: $(VENV)/.dev $(MODEL) ## Check the service and the engine on this Mac (10 minutes), and write a JSON report
	$(BIN)/python -m tests.mac $(MAC)

ui: $(UI)/node_modules/.installed ## Check, test and build the web page in osaurusd/ui/static; needs Node.js
	cd $(UI) && npm run check && npm test && npm run build

soak: $(VENV)/.dev $(MODEL) ## Stress a daemon for MINUTES (10) and check for leaks; SEED=1 repeats a run
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $${SEED:+--seed "$$SEED"} $(SOAK)

soak-distributed: $(VENV)/.dev $(MODEL) ## Run models on three hosts while hosts, links and ranks fail, for MINUTES (10)
	$(BIN)/python -m tests.soak.distributed --minutes $(MINUTES) $${SEED:+--seed "$$SEED"}

lint: $(VENV)/.dev ## Check format, style, spelling, types and import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code and apply safe lint fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.docs ## Build the documentation site in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

run: $(VENV)/.installed ## Run the daemon in the foreground
	$(BIN)/osaurusd serve

bench: $(VENV)/.dev $(MODEL) $(EMBEDDER) ## Compare performance with mlx_lm.server (10 to 30 minutes)
	$(BIN)/python -m tests.bench $(BENCH)

screenshot: $(VENV)/.installed $(MODEL) ## Run a session and save what it prints as docs/images/terminal.svg
	$(BIN)/python -m tests.demo.screenshot

screenshots: $(VENV)/.dev $(MODEL) $(EMBEDDER) ## Photograph the web page for docs/images; needs Chromium
	$(BIN)/python -m tests.demo.page_screenshots

check-recommended: $(VENV)/.installed ## Compare the recommended models with the hub (needs the network)
	$(BIN)/python -m tests.check_recommended

dist: $(VENV)/.release ## Build the source distribution and the wheel, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

constraints: $(VENV)/.release ## Update constraints.txt to the newest versions of all dependencies
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --fork-strategy fewest --no-annotate \
		--custom-compile-command "make constraints" --extra vision --group dev --group docs --group release \
		--output-file constraints.txt pyproject.toml

client-locks: $(VENV)/.release ## Update the versions of the client programs in tests/clients; needs npm
	for folder in python litellm; do \
		$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-annotate \
			--custom-compile-command "make client-locks" \
			--output-file tests/clients/$$folder/requirements.txt tests/clients/$$folder/requirements.in; done
	for folder in libraries ai-4 agents; do \
		(cd tests/clients/$$folder && rm package-lock.json && npm install --package-lock-only \
			--omit-lockfile-registry-resolved --no-audit --no-fund); done

man: $(VENV)/.installed ## Write the manual pages in man/ from the help of the commands
	$(BIN)/python -m osaurusctl.manual man

clean: ## Remove everything that these targets create
	rm -rf $(VENV) $(UI)/node_modules .cache .demo .coverage .coverage.* dist site

$(VENV)/.python:
	@echo "Creating a virtual environment in $(VENV) ..."
	@sh .ci/venv "$(PYTHON)" $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing osaurusd and its dependencies ..."
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "Installing test and lint dependencies ..."
	@$(PIP_INSTALL) --group dev
	@$(PIP_INSTALL) --no-deps mlx-vlm  # only its model code is used, which needs Pillow
	@touch $@

$(VENV)/.docs: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing documentation dependencies ..."
	@$(PIP_INSTALL) --group docs
	@touch $@

$(VENV)/.release: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing release tools ..."
	@$(PIP_INSTALL) --group release
	@touch $@

$(UI)/node_modules/.installed: $(UI)/package.json $(UI)/package-lock.json
	@echo "Installing the packages that build the web page ..."
	@cd $(UI) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(MODEL): $(VENV)/.python tests/starter_model.py tests/packages.py
	@echo "Downloading the starter model (90 MB) ..."
	@$(BIN)/python -m tests.starter_model
	@touch $@

$(EMBEDDER): $(VENV)/.python tests/embedding_model.py tests/packages.py
	@echo "Downloading the embedding model for tests (90 MB) ..."
	@$(BIN)/python -m tests.embedding_model
	@touch $@
