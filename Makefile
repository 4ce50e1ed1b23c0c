# What can be done here; `make help` says it shorter.
#
# CI=1 or YES=1: install missing packages without asking. Everything listens on loopback only.

.DEFAULT_GOAL := help
.PHONY: help deps try test check unit bench chaos fuzz clean

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

# Many more people and flips than in `make test`.
CHAOS_PEOPLE ?= 100
CHAOS_ROUNDS ?= 120
CHAOS_CRASHES ?= 500

chaos: ## Flip, hold, kill and break things under 800 sessions, and under mail, for most of an hour
	@tests/deps.sh test cargo build --workspace --locked --bins
	CROWD_PEOPLE=$(CHAOS_PEOPLE) CROWD_ROUNDS=$(CHAOS_ROUNDS) \
		cargo test -p tests --locked --test crowd -- --test-threads 1 --nocapture
	CRASH_ROUNDS=$(CHAOS_CRASHES) cargo test -p tests --locked --test crash -- --nocapture

# Without a sanitizer, since there is no unsafe code here; so the stable compiler will do. What is found is
# kept in fuzz/found; what breaks a promise in fuzz/artifacts: copy it to fuzz/corpus, where `make test`
# replays it.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(patsubst fuzz/targets/%.rs,%,$(wildcard fuzz/targets/*.rs))

fuzz: ## Look for input that breaks a promise, FUZZ_SECONDS (60) for each of FUZZ_TARGETS (all)
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	@cp Cargo.lock fuzz/Cargo.lock
	RUSTC_BOOTSTRAP=1 cargo fuzz build -s none
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/found/$$target; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run -s none $$target fuzz/found/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -verbosity=0 || exit 1; \
	done

clean: ## Remove what was built
	cargo clean
