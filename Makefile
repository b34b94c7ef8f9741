# Everything a developer or a user of a fresh clone needs. Only Python >= 3.11,
# pip, venv and make have to be there.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help venv test lint run demo operations clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# "compat" because a plain editable install does not find the twistd plugin.
$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]" --config-settings editable_mode=compat
	touch $@

venv: $(VENV)/installed ## make the environment in .venv

test: venv ## run every test
	$(BIN)/python -m twisted.trial $(or $(TESTS),tests)

lint: venv ## mypy and ruff
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

run: venv ## start the proxy on etc/config.yaml
	$(BIN)/twistd -n bedrockproxy --config etc/config.yaml

clean: ## remove what was made
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .mypy_cache .ruff_cache
