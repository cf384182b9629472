# What people run, and what CI runs. Needs Rust; the rest is installed where it is missing (Debian, as root).

CARGO ?= cargo
DATABASE ?= sqlite

.PHONY: all build demo test lint docs unit scenarios bench bench-tunnel bench-many bench-claims interop wireguard-tests faults fuzz deps clean

all: build

build:
	$(CARGO) build --release --workspace

# The main job, live: three servers, three agents, and everything that can go wrong. DATABASE=postgres uses a private Postgres.
demo: deps
	$(CARGO) build --release --quiet -p agent -p server -p netns-tests
	$(CARGO) run --release --quiet -p netns-tests --bin demo -- --database $(DATABASE)

# Everything. A test that cannot run here fails and says why.
test: deps lint docs unit scenarios

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@tree=$$($(CARGO) tree -q -p agent-core -e normal) || exit 1; \
	if echo "$$tree" | grep -wE 'tokio|mio|async-std'; then \
		echo "agent-core decides without I/O: no runtime may be among its dependencies" >&2; exit 1; fi

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

# Unit tests, simulation, and the store suite on SQLite and Postgres.
unit:
	$(CARGO) test --workspace --exclude netns-tests --release --quiet
	$(CARGO) test -p netns-tests --lib --bins --release --quiet

# Real processes in network namespaces. FILTER=name runs those whose name contains it.
scenarios:
	$(CARGO) test -p netns-tests --release --test scenarios -- $(FILTER)

bench: deps
	$(CARGO) build --release --quiet -p agent -p server -p netns-tests
	$(CARGO) run --release --quiet -p netns-tests --bin bench

# The tunnel beside wireguard-go's newest and boringtun-cli, with its filter, and at its limit: with copies instead of encryption, in a build of its own that cannot
# become the agent. Interleaved, about 13 minutes; ROUNDS and LOAD (seconds) change that, ONLY=a,b measures those programs. Fails by the floors
# among the targets, and if anything was sent twice.
ROUNDS ?= 5
LOAD ?= 3
TARGET = $(or $(CARGO_TARGET_DIR),target)
bench-tunnel: deps
	packaging/build-peers.sh target/peers
	$(CARGO) build --release --quiet -p agent -p server -p netns-tests
	$(CARGO) build --release --quiet -p agent-tunnel --example endpoint
	RUSTFLAGS="--cfg holdfast_copy_instead_of_aead" $(CARGO) build --release --quiet -p agent-tunnel --example endpoint --target-dir $(TARGET)/copy
	$(CARGO) run --release --quiet -p netns-tests --bin bench_tunnel -- --peers target/peers --target $(TARGET) --copy-target $(TARGET)/copy \
		--rounds $(ROUNDS) --seconds $(LOAD) $(if $(ONLY),--only "$(ONLY)")

# `agent wg` with 10,000 peers: what idle ones cost, and all of them waking at once beside live traffic, four times. Fails if a first packet is lost or a bound is broken. About 4 minutes;
# PEERS changes how many.
PEERS ?= 10000
bench-many: deps
	$(CARGO) build --release --quiet -p agent -p netns-tests
	$(CARGO) run --release --quiet -p netns-tests --bin bench_many -- --peers $(PEERS)

# Shared addresses under every fault, beside VpnCloud: outages and losses of so many ROUNDS (THEIRS of VpnCloud's), steadiness for so many MINUTES. About half an hour; ROWS="killed frozen" measures
# the rows whose names contain one of these. Fails only where something could not be measured, with STRICT=--strict also where a target is missed;
# PAIR_DAYS: how many days of one pair are simulated.
THEIRS ?= 15
MINUTES ?= 10
ROWS ?=
STRICT ?=
PAIR_DAYS ?= 500
bench-claims: ROUNDS = 50
bench-claims: deps
	packaging/build-vpncloud.sh target/vpncloud
	$(CARGO) build --release --quiet -p agent -p server -p netns-tests
	$(CARGO) build --release --quiet -p agent-sim --example claims
	$(CARGO) run --release --quiet -p netns-tests --bin bench_claims -- --vpncloud target/vpncloud --rounds $(ROUNDS) --their-rounds $(THEIRS) \
		--minutes $(MINUTES) --pair-days $(PAIR_DAYS) $(STRICT) $(ROWS)

# Ours against wireguard-go's newest, boringtun-cli and Debian's kernel (in QEMU, emulated). Five minutes; ONLY=name: the pairs whose name contains it.
ONLY ?=
interop: deps
	packaging/build-peers.sh target/peers
	packaging/build-guest.sh target/guest
	$(CARGO) build --release --quiet -p agent -p netns-tests
	$(CARGO) run --release --quiet -p netns-tests --bin interop -- --only '$(ONLY)'

# wireguard-go's own tests, whole, against `agent wg`. Needs root, and Go to fetch them; about a minute.
wireguard-tests:
	$(CARGO) build --release --quiet -p agent
	packaging/wireguard-tests.sh $(or $(CARGO_TARGET_DIR),target)/release/agent target/wireguard-tests.log

# So many live datagrams through a network with every fault, within one process. `make test` sends 100,000.
FAULTS ?= 10000000
FAULTS_TEST = worker::fuzzing::faults::live_datagrams_survive_every_fault_and_nothing_wrong_is_delivered
faults:
	@$(CARGO) test --release --quiet -p agent-tunnel --lib -- --list --exact $(FAULTS_TEST) | grep -q ': test$$' || \
		{ echo "there is no test $(FAULTS_TEST)" >&2; exit 1; }
	HOLDFAST_FAULTS=$(FAULTS) $(CARGO) test --release --quiet -p agent-tunnel --lib -- --nocapture --exact $(FAULTS_TEST)

# Every decoder of foreign bytes, for SECONDS each (FUZZ=name: those whose name contains it). Needs cargo-fuzz (`cargo install cargo-fuzz`), for its instruments a nightly's
# flags, and for the tunnel's root. What is found lies in */fuzz/artifacts; once it is mended it belongs into the corpus.
SECONDS ?= 60
FUZZ ?=
FUZZ_DIR = $(or $(CARGO_TARGET_DIR),target)/fuzz
fuzz:
	@$(CARGO) fuzz --version >/dev/null || { echo "cargo install cargo-fuzz" >&2; exit 1; }
	@for crate in proto agent server; do ls $$crate/fuzz/corpus; done | grep -q -- '$(FUZZ)' || { echo "no fuzz target's name contains $(FUZZ)" >&2; exit 1; }
	@set -e; for crate in proto agent server; do \
		cp Cargo.lock $$crate/fuzz/Cargo.lock; \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz build --fuzz-dir $$crate/fuzz --target-dir $(FUZZ_DIR) -s none; \
		for target in $$(ls $$crate/fuzz/corpus | grep -- '$(FUZZ)'); do \
			found=$$(mktemp -d); log=$(FUZZ_DIR)/$$crate-$$target.log; \
			if RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir $$crate/fuzz --target-dir $(FUZZ_DIR) -s none $$target \
				$$found $$crate/fuzz/corpus/$$target -- -max_total_time=$(SECONDS) -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 \
				>$$log 2>&1; \
			then rm -r $$found; echo "$$crate: $$target:$$(sed -n 's/stat::number_of_executed_units://p' $$log) executions"; \
			else rm -r $$found; tail -n 40 $$log >&2; echo "$$crate: $$target failed; all it said is in $$log" >&2; exit 1; fi; \
		done; done

deps:
	packaging/install-deps.sh

clean:
	$(CARGO) clean
