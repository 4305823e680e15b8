# Each target says what it does in `make help`. Tiers of tests, fastest first: unit, a real API server, real nodes.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
# The digest of the agent's image, sha256:…, that a release of the plugin runs. The image is built and pushed first.
AGENT_DIGEST ?=
PROFILE ?= cri-dockerd

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: build
build: ## the plugin, the agent and the agent's root file system, into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS) -X main.agentDigest=$(AGENT_DIGEST)" -o bin/kubectl-runtime ./cmd/kubectl-runtime
	CGO_ENABLED=0 go build -tags grpcnotrace -trimpath -ldflags "$(LDFLAGS)" -o bin/runtime-agent ./cmd/runtime-agent
	ln -sf kubectl-runtime bin/kubectl_complete-runtime
	tar -C bin --owner=0 --group=0 --numeric-owner -cf bin/agent-rootfs.tar runtime-agent

.PHONY: lab-command
lab-command: ## the lab's command, bin/lab; `bin/lab up` builds what its profile needs
	@hack/deps
	go build -o bin/lab ./test/lab/cmd/lab

.PHONY: lab
lab: lab-command ## bin/lab and the binaries that its nodes run, for all profiles (cached outside the tree)
	test/lab/build/build.sh

.PHONY: demo
demo: build lab-command ## a lab cluster on Docker, status, switch of a node to containerd, status (PROFILE=dockershim for an old one)
	hack/demo $(PROFILE)

# The packages with tests that -short leaves out.
API_PACKAGES = ./test/apiserver/... $(shell grep -rlE 'test/apiserver"|agenttest\.(CNIPlugins|Dockerds|ConfigReleases|Releases|Runc|Start)' --include='*_test.go' cmd pkg $(wildcard test/hostile) | \
	xargs -n 1 dirname | sort -u | sed 's|^|./|')
UNIT_PACKAGES = ./cmd/... ./pkg/... ./test/lab/...

.PHONY: test
test: ## every tier that this machine can run; the API tier has the unit tests of its packages
	$(MAKE) unit UNIT_PACKAGES="$$(go list $(UNIT_PACKAGES) | grep -vxF "$$(go list $(API_PACKAGES))" | xargs)"
	$(MAKE) api e2e

.PHONY: unit
unit: ## unit tests
	@hack/deps
	go vet ./...
	go test -race -shuffle=on -short $(UNIT_PACKAGES)

# The API servers that tests run against, the oldest first (test/apiserver has them, too), and the tests that depend on which it is.
API_VERSIONS := 1.17 1.20 1.23 1.24 1.37
OLDEST_API := $(firstword $(API_VERSIONS))
VERSION_PACKAGES := ./test/apiserver ./pkg/oldapi ./pkg/drain ./pkg/nodejob ./pkg/nodeswitch ./pkg/plugin
VERSION_TESTS := ^Test(Server|List.*|Evict|HasReadyEndpoint|CheckServer|TooOldServer|Status.*|Plan|Switch|SwitchChecks|SwitchDryRun|SwitchRefusals|Rollback|RollbackDryRun|Drain|Budget|Exec|ServerTakesTheManifests|Ensure|NoDNS|ImagesToBring|PodsThatAreLeaving|LookAtHost|NamespaceIsOpenForRuns|NamespaceLimits|PodSecurityPolicy|UninstallRemovesWhatDocsMake|RestrictedCluster|RBACIsEnough|WebhookDenies|FailedBefore|Preflight|HostIsVerified)$$

.PHONY: api
api: ## tests against a real API server and etcd, and real daemons
	@hack/deps
	test/lab/build/build.sh etcd kubernetes-1.37 kubernetes-1.24 kubernetes-$(OLDEST_API) containerd containerd-1.7 containerd-2.0
	go test -race -shuffle=on -timeout 40m $(API_PACKAGES)
	KUBECTL_RUNTIME_TEST_KUBERNETES=$(OLDEST_API) go test -race -shuffle=on -timeout 40m -run '$(VERSION_TESTS)' $(VERSION_PACKAGES)

.PHONY: api-versions
api-versions: ## what depends on the API server's version, against each from 1.17 on (half an hour; the builds of a cold cache are another)
	@hack/deps
	test/lab/build/build.sh etcd $(patsubst kubernetes-1.23,kubernetes-1.23-control-plane,$(API_VERSIONS:%=kubernetes-%))
	for version in $(API_VERSIONS); do \
		echo "Kubernetes $$version"; \
		KUBECTL_RUNTIME_TEST_KUBERNETES=$$version CI=true go test -count=1 -timeout 40m -run '$(VERSION_TESTS)' $(VERSION_PACKAGES) || exit 1; \
	done

FUZZTIME ?= 10m
FUZZ_PARALLEL ?= 2
PKG ?= ./cmd/... ./pkg/...

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME, one at a time (PKG=./pkg/untrusted for those of a package; FUZZ_PARALLEL=N workers)
	hack/fuzz $(FUZZTIME) $(FUZZ_PARALLEL) $(PKG)

.PHONY: e2e
e2e: build lab ## the whole way on real nodes, both profiles
	hack/can-run-nodes || exit $$(( $$? == 77 ? 0 : 1 )); \
	hack/gotest -count=1 -v -parallel 8 -timeout 60m ./test/e2e/...

.PHONY: e2e-oldest
e2e-oldest: build lab ## a switch and the way back on nodes of Kubernetes 1.20, control plane included
	test/lab/build/build.sh kubernetes-1.20
	KUBECTL_RUNTIME_OLDEST=1 go test -count=1 -v -timeout 60m -run TestOldest ./test/e2e/...

.PHONY: crash-matrix
crash-matrix: build lab ## have something go wrong at every step of a switch, on both profiles (hours); see docs/reliability.md
	KUBECTL_RUNTIME_CRASH_MATRIX=1 go test -count=1 -v -timeout 300m -run TestCrashMatrix ./test/e2e/...

.PHONY: overlays
overlays: build lab ## switch nodes with years of configuration on them, on both profiles, and look into their pods (half an hour); see test/e2e/overlays
	KUBECTL_RUNTIME_OVERLAYS=. go test -count=1 -v -parallel 8 -timeout 120m -run TestOverlays ./test/e2e/...

.PHONY: bench
bench: build lab ## measure images, time out of service and status, into docs/performance.md (an hour; KUBECTL_RUNTIME_BENCH_RUNS=N)
	@# One process for each: a program's peak of memory is at least that of the one that starts it.
	for bench in $$(go test -list . ./test/bench | grep ^Test); do \
		KUBECTL_RUNTIME_BENCH=1 go test -count=1 -v -timeout 300m -run "^$$bench$$" ./test/bench || exit 1; \
	done

.PHONY: verify
verify: verify-fast verify-systems lint ## everything that can be said of the code without running it

.PHONY: verify-fast
verify-fast: ## the part of verify that takes a minute and needs nothing but Go: go.mod, format, layers, generated files
	go mod tidy -diff
	@unformatted=$$(git ls-files -z '*.go' | xargs -0 gofmt -l) && [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	go test ./test/layers
	@[ "$$(go test -list '$(GENERATED)' $(GENERATORS) | grep -c '^Test')" = $(words $(GENERATORS)) ] || { echo "a test of GENERATED was moved: mend GENERATORS in the Makefile"; exit 1; }
	go test -short -run '$(GENERATED)' $(GENERATORS)

# What the plugin is built from is compiled for each system, many minutes the first time.
.PHONY: verify-systems
verify-systems: ## vet the plugin for the other systems that it runs on
	@for os in darwin windows; do \
		echo "go vet for $$os"; \
		GOOS=$$os CGO_ENABLED=0 go vet $$(GOOS=$$os CGO_ENABLED=0 go list -deps ./cmd/kubectl-runtime | grep '^github.com/kubectl-runtime/') || exit 1; \
	done

# The tests that compare docs/checks.md, docs/configuration.md and docs/rbac.yaml with the code, and write them with -update.
GENERATED := ^(TestDocs|TestDocumentationIsFresh|TestRBAC)$$
GENERATORS := ./pkg/assess ./pkg/agent/translate ./pkg/nodeswitch

.PHONY: generate
generate: ## write the generated files of docs/
	for package in $(GENERATORS); do go test -short -run '$(GENERATED)' $$package -update || exit 1; done

.PHONY: lint
lint: ## golangci-lint and shellcheck with the repo's settings
	go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...
	shellcheck hack/* test/lab/build/build.sh .ci/run

.PHONY: clean
clean: ## remove bin/ (the caches outside the tree stay)
	rm -rf bin dist
