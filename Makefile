# CI (.ci/run) runs these same targets. What they share is in scripts/: need (what the system must have), build, lint, rename.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-builtin-rules --no-print-directory
# One thing after another, whatever -j says: each target already uses every core, and its words stay readable.
.NOTPARALLEL:

# The place where Go's own installer puts it, for a shell that has not been told yet.
export PATH := $(PATH):/usr/local/go/bin

# PKG=./creds RUN=Rotation narrows test, bench and soak; ARGS adds flags of go test (ARGS=-v).
PKG  ?= ./...
RUN  ?=
ARGS ?=
# The race detector needs a C compiler; without one the tests run all the same, and say so.
RACE ?= $(shell echo 'int main(void){return 0;}' | $${CC:-cc} -x c - -o /dev/null 2>/dev/null && echo -race)
warn_race = $(if $(RACE),,@echo "no working C compiler (gcc and libc's headers): testing without the race detector")

# The virtual machines: their addresses, their number, their processor (the one of this computer).
NET     ?= 192.168.56
CONSULS ?= 3
TODOS   ?= 4
SLOW    ?=
MACHINE_ARCH ?= $(shell go env GOHOSTARCH)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  CONSUL=, VAULT=             other binaries than those that 'make tools' builds"
	@echo "  PKG=./creds RUN=T ARGS=-v   narrow test, test-short, bench and soak"

.PHONY: demo
demo: database tools build ## install and build what is missing, start the lab, show its board and a tour of the API
	@bin/lab up
	@bin/lab status
	@bin/lab tour

.PHONY: build
build: go ## bin/todo and bin/lab
	@scripts/build product

.PHONY: tools
tools: go ## Consul and Vault, once per version, in the user's cache; with GOARCH=arm64 all that a VM needs, in bin/linux-arm64
ifneq ($(GOARCH)$(GOOS),)
	@scripts/build --vm consul vault product
else
	@scripts/build consul vault
endif

.PHONY: box
box: ## the LXC box that 'vagrant up --provider lxc' starts machines from, from Debian's packages, once, in the user's cache
	@scripts/box lxc

.PHONY: machines
machines: build ## what the virtual machines install: their programs and configuration, in .vagrant/lab (`vagrant up` calls it)
	@GOARCH=$(MACHINE_ARCH) scripts/build --vm consul vault product
	@bin/lab --on vagrant stage --bin bin/linux-$(MACHINE_ARCH) --net '$(NET)' --consul $(CONSULS) --todo $(TODOS) $(if $(SLOW),--slow)

.PHONY: deps
deps: database tools ## everything that comes over the network; after this all other targets work without one
	@scripts/need shellcheck ruby
	@echo "fetching the Go modules of the product and of the linters"
# `go mod tidy` asks for exactly what building, testing and tidying need; `go mod download` would fetch more.
	@go mod tidy -diff >/dev/null 2>&1 || go mod download
	@go -C tools/lint list -deps tool >/dev/null

.PHONY: test
test: database tools ## every test, unit and integration, on real servers, with the race detector
	$(warn_race)
	go test $(RACE) -timeout 15m -run '$(RUN)' $(ARGS) $(PKG)

.PHONY: test-vagrant
test-vagrant: go ## the same system on machines, on LXC: up, tour, a kill, a cut, a power cut, destroyed again; needs Debian and root or sudo
	@scripts/test-vagrant

.PHONY: test-short
test-short: go ## the tests that start no server
	$(warn_race)
	go test $(RACE) -short -timeout 5m -run '$(RUN)' $(ARGS) $(PKG)

.PHONY: soak
soak: database tools ## the tests of 'make test' with full counts (SOAK=1), for hours
	SOAK=1 go test -count=1 -v -timeout 6h -run '$(RUN)' $(ARGS) $(PKG)

.PHONY: bench
bench: database tools ## benchmarks
	go test -run '^$$' -bench '$(or $(RUN),.)' -benchmem -timeout 30m $(ARGS) $(PKG)

.PHONY: lint
lint: go ## gofmt, go vet, staticcheck, shellcheck, ruby -wc, govulncheck, tidiness, import rules
	@scripts/need shellcheck ruby
	@scripts/lint

.PHONY: rename
rename: go ## MODULE=github.com/acme/todo: change the module's path everywhere
	@scripts/rename "$(MODULE)"

.PHONY: clean
clean: ## remove what was built here; the lab's data (bin/lab down --wipe) and the cache of Consul and Vault stay
	rm -rf bin

# Checks, not for the list: see that a usable Go, and a database server, are there.
.PHONY: go database
go:
	@scripts/need go
database: go
	@scripts/need database
