# `make` runs what CI runs and needs no privileges; `make test` is everything and wants root; `make help` lists the rest.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
FUZZTIME    ?= 10s

# What --version prints. A tree without git is built with VERSION=, COMMIT= and DATE= on the command line.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE    ?= $(shell git show -s --format=%cI HEAD 2>/dev/null)

# Static and reproducible: no C, no paths, no build ID; the revision comes from above instead of the go command.
MODULE   := github.com/planetmesh/planetmesh
STAMP    := -X $(MODULE)/internal/version.linkedVersion=$(VERSION) -X $(MODULE)/internal/version.linkedCommit=$(COMMIT) -X $(MODULE)/internal/version.linkedDate=$(DATE)
STATIC   := CGO_ENABLED=0 go build -trimpath -buildvcs=false
COMMANDS := $(addprefix ./,$(wildcard meshd kubeinit))
PLATFORMS := linux/arm64 darwin/arm64 windows/amd64
LINTER   := bin/tools/golangci-lint

.NOTPARALLEL: # two of these at once slow each other down
.PHONY: check help build test unit race lint tidy-check cross integration e2e openvpn openvpn-table e2e-openvpn-versions bench bench-openvpn soak-openvpn sim sim-ci sim-report sim-real fuzz cover demo demo-vyos demo-kube e2e-kube e2e-kubelab deps clean

check: build race lint cross tidy-check sim-ci ## what CI runs without privileges (the default)

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: deps check integration ## everything that CI runs; as root, because of the network namespaces

build: ## static, reproducible meshd and kubeinit in bin/
	$(STATIC) -ldflags '-buildid= $(STAMP)' -o bin/ $(COMMANDS)

unit: ## tests beside the code, quickly
	go test ./...

# One processor a test: with Go 1.26.8 the race detector can die in a testing/synctest bubble whose timers fire on two at
# once. It finds the same races, for it compares what is ordered before what.
race: ## the same under the race detector
	go test -race -cpu 1 ./...

lint: $(LINTER) ## gofmt, vet, staticcheck and the rest of .golangci.yml
	$(LINTER) run

$(LINTER): internal/tools/go.mod internal/tools/go.sum
	CGO_ENABLED=0 go -C internal/tools build -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint && touch $@

tidy-check: ## go.mod and go.sum say what the code needs
	go mod tidy -diff

cross: ## overlay and examples/embed for the other platforms
	for p in $(PLATFORMS); do echo "cross: $$p" && CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} go build -trimpath ./overlay/... ./examples/embed; done

integration: ## tests in network namespaces; fails without CAP_NET_ADMIN
	.ci/netadmin .ci/tagged integration -race -timeout 10m

e2e: deps ## built binaries in whole worlds, each test three times; root, minutes
	.ci/netadmin go test -tags integration -count=3 -timeout 30m ./internal/netlab/meshlab

openvpn: deps ## overlay/openvpn against the distribution's real openvpn; root, minutes
	.ci/netadmin .ci/tagged openvpn -timeout 30m

openvpn-table: deps ## the same, and its results into docs/openvpn-interop.md
	OPENVPN_TABLE=$(CURDIR)/docs/openvpn-interop.md .ci/netadmin .ci/tagged openvpn -timeout 30m

e2e-openvpn-versions: deps ## overlay/openvpn against openvpn 2.5 and 2.7 from the distribution's other suites, into the same table; root, apt
	OPENVPN_TABLE=$(CURDIR)/docs/openvpn-interop.md .ci/netadmin .ci/tagged openvpnversions -timeout 30m

bench: deps build ## throughput beside plain WireGuard and OpenVPN, for docs/performance.md; root, minutes
	.ci/netadmin go run ./internal/bench

bench-openvpn: deps ## our OpenVPN endpoint beside OpenVPN, for docs/performance.md; root, minutes
	.ci/netadmin go run ./internal/bench -suite endpoint

BYTES ?= 1073741824
soak-openvpn: deps ## overlay/openvpn beside openvpn under loss and reordering, BYTES (1 GiB) per mode; root, minutes
	.ci/netadmin go test -tags soak -count=1 -v -timeout 60m -run '^TestSoak$$' ./overlay/openvpn -args -soak.bytes $(BYTES)

SEEDS    ?= 50
SEED     ?= 0
GATEWAYS ?= 30

sim: ## SEEDS (50) schedules of faults from SEED on (random) in virtual time, meshes of GATEWAYS (30)
	go run ./internal/sim -seeds $(SEEDS) -seed $(SEED) -gateways $(GATEWAYS)

sim-ci: ## the fifty schedules that CI runs; make sim draws other ones
	go run ./internal/sim -seeds 50 -seed 1 -gateways 12 -longest 15m -shrink 1m

sim-report: ## distributions and growth in virtual time beside plain memberlist, for docs/performance.md; an hour
	go run ./internal/sim -report docs/performance.md

sim-real: build ## twelve real gateways beside the model of their network, for docs/performance.md; root, minutes
	.ci/deps ip ping nft && .ci/netadmin go run ./internal/sim/real -doc docs/performance.md

fuzz: ## every fuzz target for FUZZTIME (10s) each
	.ci/fuzz $(FUZZTIME)

cover: ## statement coverage in cover.out and in all
	go test -coverprofile=cover.out ./... && go tool cover -func=cover.out | tail -n 1

demo: build ## three sites become one network; root or user namespaces
	.ci/deps ip ping nft && .ci/netadmin go run ./examples/three-sites

demo-vyos: build ## a VyOS router joins by OpenVPN, one of its two gateways dies; root or user namespaces
	.ci/deps ip ping nft openvpn && .ci/netadmin go run ./examples/demo-vyos

ENDPOINT ?= proxy
demo-kube: build ## kubeinit builds a real cluster over three sites (ENDPOINT=haproxy: behind HAProxy); root, 5 minutes, the first time 30
	.ci/deps ip nft && go run ./examples/demo-kube -endpoint $(ENDPOINT)

e2e-kube: build ## kubeinit on two hosts: killed everywhere, failing, planned, reset; KUBE_VERSION=1.37 for the newer; root, 10 minutes
	.ci/deps ip nft && go test -tags e2ekube -count=1 -v -timeout 40m -run 'Apply|Undone' ./kubeinit

e2e-kubelab: build ## the laboratory of demo-kube itself, with kubeadm by hand; KUBE_VERSION=1.37 for the newer; root
	.ci/deps ip nft && MESHD=$(CURDIR)/bin/meshd go test -tags e2ekube -count=1 -v -timeout 40m ./internal/netlab/kubelab

deps: ## the programs that tests run (apt-get as root, otherwise says what is missing)
	.ci/deps

clean: ## remove what make built
	rm -rf bin dist cover.out
