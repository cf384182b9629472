# What people run, and what CI runs. Needs Rust; the rest is installed where it is missing (Debian, as root).

CARGO ?= cargo
DATABASE ?= sqlite

.PHONY: all build demo test lint docs unit scenarios bench bench-tunnel fuzz deps clean

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

# The tunnel beside wireguard-go's newest and boringtun-cli, interleaved. About 15 minutes; ROUNDS and LOAD (seconds) change that.
ROUNDS ?= 5
LOAD ?= 3
bench-tunnel: deps
	packaging/build-peers.sh target/peers
	$(CARGO) build --release --quiet -p agent -p netns-tests
	$(CARGO) run --release --quiet -p netns-tests --bin bench_tunnel -- --peers target/peers --rounds $(ROUNDS) --seconds $(LOAD)

# Every decoder of foreign bytes, for SECONDS each. Needs cargo-fuzz (`cargo install cargo-fuzz`) and, for its instruments, a nightly's flags.
SECONDS ?= 60
fuzz:
	@$(CARGO) fuzz --version >/dev/null || { echo "cargo install cargo-fuzz" >&2; exit 1; }
	@set -e; for crate in proto server; do \
		cp Cargo.lock $$crate/fuzz/Cargo.lock; \
		for target in $$(ls $$crate/fuzz/corpus); do \
			echo "$$crate: $$target"; found=$$(mktemp -d); \
			RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir $$crate/fuzz --target-dir target/fuzz -s none $$target \
				$$found $$crate/fuzz/corpus/$$target -- -max_total_time=$(SECONDS) -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 2>&1 \
				| grep -E 'stat::number_of_executed_units|SUMMARY|panicked' ; \
			rm -r $$found; test -z "$$(ls $$crate/fuzz/artifacts/$$target 2>/dev/null)"; \
		done; done

deps:
	packaging/install-deps.sh

clean:
	$(CARGO) clean
