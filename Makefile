# Everything there is to do here; `make` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
CACHE   := $(or $(EVENT_TOOLS),$(HOME)/.cache/event-tools)/bin
GOFUMPT := go tool -modfile=tools/go.mod gofumpt
FUZZTIME ?= 30s

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/postern
	CGO_ENABLED=0 go build -tags grpcnotrace -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/postern ./cmd/gateway

run: build ## the gateway with a broker of its own; ARGS="--memory" and the like
	./bin/postern dev $(ARGS)

# The tests in simulated time; the others of their packages run without it (and with it under race).
SIMULATED = $(shell grep -rl 'go:build synctests' --include=*_test.go delivery internal broker | xargs grep -hoE '^func (Test|Fuzz)[A-Za-z0-9_]+' | cut -c6- | sort -u | paste -sd'|')

test: ## every test that needs nothing but Go, with and without simulated time
	go test ./...
	go test -tags synctests -run '^($(SIMULATED))$$' ./delivery/... ./internal/chore ./internal/gateway/... ./broker/...

SEEDS ?= 1000
seeds: ## simulate SEEDS (1000) fault schedules in simulated time; SEED=FIRST for one that failed
	go test -tags synctests -count=1 -timeout 4h -v -run '^TestSeeds$$' ./internal/gateway -seeds $(or $(N),$(SEEDS)) $(if $(SEED),-seed $(SEED)) | grep -v '^ *=== '

mutants: ## plant deliberate bugs one at a time; each must be caught; ARGS="-only NAME" or "-list"
	cd tools && go run ./mutants $(ARGS)

peers: ## what users of other gateways saw go wrong, as tests (docs/reliability.md)
	go test -tags synctests -count=1 -v -run '^TestPeer_' ./internal/gateway | grep -v '^=== '

race: ## the tests where goroutines meet, under the race detector
	go test -race -tags synctests ./broker/... ./delivery/... ./publish/... ./subscribe/... ./tail/... ./internal/... ./history/...

test-kafka: ## the suites on a real Kafka: KAFKA_BOOTSTRAP's, or 1 and 3 brokers started here
	tools/test-kafka

kill: ## kill -9 the gateway three times under load, then judge every event's history
	go test -count=1 -v -run TestKillNine ./cmd/gateway

faults: ## gateways, brokers, disks and links broken for 3 minutes under load, then judged; ARGS="-brokers 3 -duration 10m"
	tools/faults $(ARGS)

smoke: ## the README's commands on a clean clone
	tools/smoke

flights: ## 336,000 real flights through HTTP, gRPC and webhooks on a real Kafka; ARGS="-limit 20000"
	tools/flights $(ARGS)

interop: ## the official CloudEvents SDKs, standardwebhooks and grpcio, unmodified
	interop/run

interop-schemas: ## Kafka Streams and Connect (Java) with Apicurio's Avro serde and registry, on a real Kafka
	interop/schemas

k6: ## every k6 script for a few seconds against a gateway of its own
	tools/k6-smoke

bench: ## publish and subscribe against floors and the Kafka client, on a real Kafka; ARGS="-quick -only NAME"
	tools/bench $(ARGS)

benchcmp: ## micro benchmarks of HEAD against BASE (main), interleaved, by benchstat; cells: bin/bench -compare OLD.jsonl NEW.jsonl
	tools/benchcmp $(or $(BASE),main)

abuse: ## schemathesis against the served OpenAPI of a running gateway: no 5xx and no undocumented status
	tools/abuse $(ARGS)

fuzz: ## each fuzz target for FUZZTIME (30s)
	@set -e; for f in $$(grep -rlE '^func Fuzz' --include=*_test.go .); do \
	  for t in $$(grep -oE '^func Fuzz[A-Za-z0-9_]+' $$f | cut -c6-); do \
	    echo "== $$t"; go test ./$$(dirname $$f) -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME); done; done

generate: ## Go and OpenAPI from the protos, docs from the code
	tools/provision buf >/dev/null
	$(CACHE)/buf generate
	go generate ./...

check-generated: generate ## fails if what is generated is not what is committed
	@git diff --exit-code --stat -- '*.pb.go' '*.pb.gw.go' internal/server/openapi docs || { echo 'generated files are not current: commit what make generate made'; exit 1; }

lint: ## buf lint, gofumpt, golangci-lint
	tools/provision buf golangci-lint >/dev/null
	$(CACHE)/buf lint
	@out=$$($(GOFUMPT) -l $$(git ls-files '*.go' | grep -v '\.pb\.')); [ -z "$$out" ] || { echo "not gofumpt'ed:"; echo "$$out"; exit 1; }
	$(CACHE)/golangci-lint run

breaking: ## fails if the protos break main's callers
	tools/provision buf >/dev/null
	$(CACHE)/buf breaking --against '.git#branch=main'

clean: ## what was built
	rm -rf bin

.PHONY: help build run test seeds mutants peers race test-kafka kill faults smoke flights interop interop-schemas k6 bench benchcmp abuse fuzz generate check-generated lint breaking clean
