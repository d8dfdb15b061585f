# The habits of this project in one place. They need Go, make and git;
# scripts/setup adds what the race detector and the tests need.

MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Modules of their own, with what users of the library shall not require.
NESTED := bench outbox/dbtest examples/outbox examples/flow-etl
# How long each fuzz target runs.
FUZZTIME ?= 60s
# The database of known vulnerabilities, or a mirror of it.
VULNDB ?= https://vuln.go.dev

.PHONY: help setup test soak lint lint-go lint-modules lint-vulnerabilities bench bench-quick fuzz cover guarantees

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Install what the tests need beyond Go
	scripts/setup

test: setup ## Run all tests with the race detector, in random order
	CGO_ENABLED=1 go test -race -shuffle=on -timeout 20m ./...
	go test -run 'AtMostOnce|AMillion|TenThousand' . # what the race detector would distort
	@for module in $(NESTED); do \
		echo "cd $$module && go test -race -shuffle=on ./..."; \
		(cd "$$module" && CGO_ENABLED=1 go test -race -shuffle=on -timeout 20m ./...) || exit; \
	done
	cd clients/js && npm ci --no-audit --no-fund && npm test

soak: setup ## Run the faults of the Redis transport five times as long, and those that take long (half an hour)
	ECHO_SOAK=5 go test -v -count=1 -timeout 60m -run 'Killed|Dies|Die|Rebalancing|Poison|Soak|PowerLoss|ClockJumps|Failover|Resharding|Cancel' ./redisstream
	ECHO_SOAK=5 go test -v -count=1 -run 'Cut|LinksThatBreak|HalfOpen|NodesKilled' ./wsstream

lint: lint-go lint-modules lint-vulnerabilities ## Check format, vet, staticcheck, go fix, modules and known vulnerabilities

lint-go:
	@echo gofmt -l .
	@files=$$(gofmt -l .); [[ -z $$files ]] || { printf 'not formatted, run gofmt -w on:\n%s\n' "$$files"; exit 1; }
	@root=$$PWD; for module in . $(NESTED); do \
		echo "cd $$module && go vet ./... && staticcheck ./... && go fix -diff ./..."; \
		(cd "$$module" && go vet ./... && go tool -modfile="$$root/tools/go.mod" staticcheck ./... && go fix -diff ./...) || exit; \
	done

lint-modules:
	@for module in . $(NESTED) tools; do \
		echo "cd $$module && go mod verify && go mod tidy -diff"; \
		(cd "$$module" && go mod verify && go mod tidy -diff) || exit; \
	done

# Of the library alone: nobody who imports it gets what bench and tools require.
# Not being able to ask the database is no finding, and said on one line.
lint-vulnerabilities:
	@echo 'go tool -modfile=tools/go.mod govulncheck ./...'
	@out=$$(go tool -modfile=tools/go.mod govulncheck -db=$(VULNDB) ./... 2>&1) && status=0 || status=$$?; \
	if [[ $$status == 1 && $$out == *'govulncheck: fetching vulnerabilities:'* ]]; then \
		echo 'govulncheck SKIPPED: its database $(VULNDB) cannot be reached from here'; \
	else \
		printf '%s\n' "$$out"; exit $$status; \
	fi

bench: setup ## Compare with the peers and write docs/performance*.md (ten minutes; leave the machine alone)
	cd bench && go run . -suite memory -o ../docs/performance.md
	cd bench && go run . -suite redis -o ../docs/performance-redis.md
	cd bench && go run . -suite ws -o ../docs/performance-websocket.md
	cd bench && go run . -suite policy -o ../docs/performance-policy.md
	cd bench && go run . -suite flow -o ../docs/performance-flow.md

bench-quick: setup ## The same comparisons in three minutes, printed only
	cd bench && go run . -suite memory -quick
	cd bench && go run . -suite redis -quick
	cd bench && go run . -suite ws -quick
	cd bench && go run . -suite policy -quick
	cd bench && go run . -suite flow -quick

# go test fuzzes one target of one package at a time.
fuzz: ## Run every fuzz target for FUZZTIME (60s) each
	@{ grep -rEo --include='*_test.go' --exclude-dir=bench --exclude-dir=tools '^func Fuzz\w+' . || echo 'no fuzz targets' >&2; } | \
	while IFS=: read -r file target; do \
		set -- go test -run='^$$' -fuzz="^$${target#func }$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=1s "$${file%/*}"; \
		echo "$$@"; scripts/fuzz "$$@"; \
	done

cover: ## Measure which code of all packages the tests reach
	go test -coverpkg=./... -coverprofile=coverage.out ./...
	@go tool cover -func=coverage.out | tail -n 1
	@echo 'see it: go tool cover -html=coverage.out'

guarantees: ## Run the suites of all transports and write docs/guarantees.md from their results
	go run ./internal/guarantees -o docs/guarantees.md
