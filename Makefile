# What a developer or a user of a fresh clone needs. Only make, Python 3.11 or
# newer, its venv and pip have to be there; the network is used by pip alone.
#
#   make test TESTS=tests.core        some of the tests
#   make demo PYTHON=python3.12       another Python, for a new environment
#   make lint VENV=../other           another place for the environment

PYTHON ?= python3
VENV ?= .venv
TESTS = tests

BIN = $(VENV)/bin

.PHONY: help venv demo test lint run clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/installed ## make the environment in .venv

# "compat" because a plain editable install does not find the twistd plugins.
$(VENV)/installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "txbedrock needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]" --config-settings editable_mode=compat
	@touch $@

# For the tests, beside the environment's own: a boto3 from before bearer tokens.
$(VENV)/boto3-1.34/installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(@D) boto3==1.34.162
	@touch $@

# Likewise the AWS CLI, which brings the botocore that it wants.
$(VENV)/awscli/installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(@D) awscli==1.46.3
	@touch $@

demo: venv ## see it work: sandbox, proxy and boto3 on this machine
	@$(BIN)/python demo/demo.py

test: venv $(VENV)/boto3-1.34/installed $(VENV)/awscli/installed ## run the tests, all or TESTS=tests.core
	$(BIN)/python -m twisted.trial $(TESTS)

lint: venv ## check types and style: mypy, ruff
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

run: venv ## start the proxy on etc/config.yaml
	$(BIN)/twistd -n --pidfile= bedrockproxy --config etc/config.yaml

clean: ## remove what was made here
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .hypothesis .mypy_cache .ruff_cache twistd.pid twisted/plugins/dropin.cache
	find txbedrock tests demo twisted -name __pycache__ -type d -prune -exec rm -rf {} +
