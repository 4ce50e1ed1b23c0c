# What can be done here; `make help` says it shorter.
#
# CI=1 or YES=1: install missing packages without asking. Everything listens on loopback only.

.DEFAULT_GOAL := help
.PHONY: help deps try test check unit e2e bench clean

# Where rustup puts cargo, for shells that do not know.
export PATH := $(PATH):$(HOME)/.cargo/bin

SERVICES := --bin mx-gateway --bin login-proxy --bin mailshift

help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

try: ## Watch an account move between two real mail servers, on this machine
	@tests/deps.sh try cargo build --release --locked $(SERVICES) --bin tour
	@target/release/tour

test: ## Check format and lints, run the unit tests and the end-to-end tests on real servers
	@tests/deps.sh test cargo build --workspace --locked --bins
	@$(MAKE) --no-print-directory check
	@tests/run.sh

deps: ## Install what `make test` needs
	@tests/deps.sh test

check: ## Check format and lints alone
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

unit: ## Run the tests that need no servers
	cargo test --workspace --locked --exclude tests

bench: ## Measure beside HAProxy, nginx, Dovecot and Postfix; prints the numbers of the README
	@tests/deps.sh bench cargo build --release --locked $(SERVICES) --bin bench
	target/release/bench

clean: ## Remove what was built
	cargo clean
