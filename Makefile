# The front door. Each target says what it does; the work is in scripts and tests.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export AEGIS_CACHE ?= $(HOME)/.cache/aegis
export CARGO_TARGET_DIR ?= $(AEGIS_CACHE)/target
export PATH := $(AEGIS_CACHE)/bin:$(PATH)

.PHONY: help up test check bench conformance e2e hooks editor console gen gen-console fmt clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

up: ## Start Aegis with two real MCP servers, show three calls, stay up until Ctrl-C
	@./e2e/up.sh

test: ## Everything that must hold: lints, unit, component and end-to-end tests
	@./e2e/test.sh

check: ## The inner loop: format, lints, unit tests of the core crates
	@./e2e/check.sh

bench: ## Measure, side by side with peers, and print method and machine
	@./bench/run.sh

conformance: ## The MCP suites in both eras, direct and through Aegis, and all of OPA's own cases
	cargo build --quiet --workspace --all-targets
	@AEGIS_BIN=$(CARGO_TARGET_DIR)/debug/aegis MCP_FIXTURE=$(CARGO_TARGET_DIR)/debug/mcp-fixture ./e2e/conformance.sh
	AEGIS_CONFORMANCE=1 cargo test --quiet --workspace --test conformance

e2e: ## A real Kubernetes node, the charts on it, two agent pods and ways round their sidecars; needs root
	cargo build --quiet --workspace --all-targets
	@AEGIS_BIN=$(CARGO_TARGET_DIR)/debug/aegis ./e2e/cluster/check.sh
	@AEGIS_BINARIES=$${AEGIS_BINARIES:-$(CARGO_TARGET_DIR)/debug} ./e2e/cluster/agents.sh

hooks: ## Real coding agents with a scripted model, governed by their hooks; installs them (1.1 GB)
	@./e2e/setup.sh node24 agents
	cargo build --quiet --workspace --all-targets
	@PATH="$$(./e2e/setup.sh where node24)/bin:$$PATH" PYTHONDONTWRITEBYTECODE=1 python3 e2e/hooks/test.py \
	  --aegis "$(CARGO_TARGET_DIR)/debug/aegis" --tools "$$(./e2e/setup.sh where agents)"

editor: ## The VS Code extension in a real editor with a real daemon; installs code-server and Chromium (root)
	@./e2e/setup.sh extension chromium editor
	cargo build --quiet --workspace --all-targets
	@AEGIS_BIN=$(CARGO_TARGET_DIR)/debug/aegis ./e2e/editor.sh

console: ## The console in a real browser with a real daemon; installs Chromium (root)
	@./e2e/setup.sh console chromium
	cargo build --quiet --workspace --all-targets
	@AEGIS_BIN=$(CARGO_TARGET_DIR)/debug/aegis ./e2e/console.sh

gen-console: ## Build the console's committed files; they are embedded in aegis
	@./e2e/setup.sh console
	@./e2e/console.sh build

gen: ## Write what is generated: reference documentation, CRDs
	cargo run --quiet -p aegis -- reference docs/reference
	cargo run --quiet -p xtask -- crds crds

fmt: ## Format the sources
	cargo fmt --all

clean: ## Remove what was built; keeps installed tools
	cargo clean
