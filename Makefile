# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
FLOWER := .venv-flower/bin
OLDEST := .venv-flower-oldest/bin
# Tests start hundreds of Python processes: none of them should compile every module again.
unexport PYTHONDONTWRITEBYTECODE

# The hub's broker, and what examples/shell-device and a test of clocks need: Debian's packages.
DEBIAN := mosquitto mosquitto-clients curl jq faketime

.PHONY: demo test test-browser screenshots test-aws test-aws-sample test-flower test-flower-sample test-tools lint bench fuzz fleet weather debian clean

demo: .venv/ready
	@$(BIN)/fleetfold demo

# Three at a time also on two cores: many tests wait, for a broker or a process.
test: .venv/ready debian lint
	@$(BIN)/pytest -n 3 --dist worksteal

lint: .venv/ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: .venv/ready
	@for name in overhead fold select buffered attack codecs proximal privacy fleet agent dashboard; do $(BIN)/python -m bench $$name || exit 1; done

# Mutated updates through the gate and the fold: FUZZ_FILES of them (a million), from FUZZ_SEED (any).
fuzz: .venv/ready
	@$(BIN)/python -m tests.fuzz

# Whole fleets of real processes: trained, killed, and in bad weather (cut off for WEATHER seconds).
fleet: .venv/ready debian
	@$(BIN)/pytest -n 2 --dist worksteal -m fleet

weather: .venv/ready debian
	@WEATHER=60 $(BIN)/pytest -s -m fleet tests/hub -k links

# The whole service on an emulated AWS, which is installed into .venv-aws (a few minutes the first time),
# started, and stopped with the tests.
test-aws: .venv/ready debian
	@$(BIN)/python -m tests.aws.stack.environments
	@$(BIN)/pytest -s -m aws tests/aws

# Of these the one that says most: ten devices, five rounds, through the deployed template.
test-aws-sample: .venv/ready debian
	@$(BIN)/pytest -s -m aws tests/aws/test_stack.py -k ten_devices

# What other people's programs make of what runs tell them: promtool, TensorBoard, MLflow, and a browser that prints;
# installed as Debian's packages, and into .venv-tools (a minute or two the first time).
TOOLS := prometheus chromium
test-tools: .venv/ready
	@command -v promtool > /dev/null && command -v chromium > /dev/null || { \
	  command -v apt-get > /dev/null || { echo "please install $(TOOLS)"; exit 1; }; \
	  echo "installing $(TOOLS)"; as=; [ $$(id -u) = 0 ] || as=sudo; \
	  $$as env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get -qq update; apt-get -qq install -y --no-install-recommends $(TOOLS)' > /dev/null; }
	@test -d .venv-tools || $(PYTHON) -m venv .venv-tools
	@.venv-tools/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,mlflow]' 'tensorboard>=2.18'
	@.venv-tools/bin/pytest -m tools tests/tell

# Flower apps, beside Flower itself: with the newest flwr (everything) and the oldest that we claim (what is quick),
# in environments of their own, .venv-flower and .venv-flower-oldest (a few minutes the first time).
test-flower: .venv/ready debian
	@$(BIN)/python -m tests.flower.environments
	@$(FLOWER)/python -m pytest -n 2 --dist loadfile -m "fleet or not fleet" tests/flower
	@$(FLOWER)/python -m pytest -m "fleet or not fleet" tests/door/test_docs.py -k flower
	@$(OLDEST)/python -m pytest -n 2 --dist loadfile tests/flower

# Of these what is quick.
test-flower-sample: .venv/ready debian
	@$(BIN)/python -m tests.flower.environments
	@$(FLOWER)/python -m pytest -n 2 --dist loadfile tests/flower
	@$(OLDEST)/python -m pytest -n 2 --dist loadfile tests/flower/test_grid.py tests/flower/test_records.py tests/flower/test_table.py

# The dashboard in Debian's Chromium, driven by Playwright and looked at by axe-core; and its pictures for the docs.
test-browser: .venv/browser
	@$(BIN)/pytest -n 2 --dist worksteal -m browser tests/dashboard

screenshots: .venv/browser
	@$(BIN)/python docs/_tools/screenshots.py

BROWSER := chromium fonts-dejavu-core
AXE := axe-core@4.14.1

.venv/browser: .venv/ready
	@for program in chromium npm; do command -v $$program > /dev/null || missing=yes; done; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get > /dev/null || { echo "please install $(BROWSER) npm"; exit 1; }; \
	  echo "installing $(BROWSER)"; as=; [ $$(id -u) = 0 ] || as=sudo; \
	  more=; command -v npm > /dev/null || more=npm; \
	  $$as env DEBIAN_FRONTEND=noninteractive sh -c "apt-get -qq update; apt-get -qq install -y --no-install-recommends $(BROWSER) $$more" > /dev/null; \
	fi
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	@npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix .browser $(AXE)
	@touch $@

debian:
	@for program in mosquitto mosquitto_sub curl jq faketime; do \
	  PATH="$$PATH:/usr/sbin" command -v $$program > /dev/null || missing=yes; done; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get > /dev/null || { echo "please install $(DEBIAN)"; exit 1; }; \
	  echo "installing $(DEBIAN)"; as=; [ $$(id -u) = 0 ] || as=sudo; \
	  $$as env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get -qq update; apt-get -qq install -y --no-install-recommends $(DEBIAN)' > /dev/null; \
	fi

# Everything with pip, under the versions that were tested together; again when either file changes.
.venv/ready: pyproject.toml constraints.txt hatch_build.py src/fleetfold/fold/_kernel.c
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo "installing into .venv, about a minute the first time"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@

clean:
	rm -rf .venv .venv-aws .venv-flower .venv-flower-oldest .venv-tools .browser .mypy_cache .ruff_cache .import_linter_cache .hypothesis
