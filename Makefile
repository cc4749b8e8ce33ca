# SPDX-License-Identifier: MIT
# make without a target lists what there is.

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PROGRAMS := mesh meshd meshd-etcd
FUZZTIME ?= 30s
SEEDS    ?= 100
SCALE    ?= 10,100,1000

# sudo does not keep PATH. The version comes from here, so the go command need not trust the checkout's owner.
export PATH    := $(PATH):/usr/local/go/bin
export GOFLAGS := $(GOFLAGS) -buildvcs=false

# Nothing of ours may call getaddrinfo: it would ask our own module.
GOBUILD := CGO_ENABLED=0 go build -trimpath -tags netgo,osusergo -ldflags "-s -w -X main.version=$(VERSION)"

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOTESTSUM   := gotest.tools/gotestsum@v1.13.0

.PHONY: help build demo demo-mesh demo-services test test-nss test-net test-store test-etcd test-dns test-prometheus test-consul test-checks test-dns-setup race check sim sim-scale fuzz fuzz-nss bench bench-nss bench-net bench-store bench-dns deb repro test-deb cross packages clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

build: ## build/mesh, meshd, meshd-etcd and libnss_mesh.so.2; refuses a module that would start a Go runtime
	@packaging/needs go gcc libc6-dev binutils
	@mkdir -p build
	$(foreach p,$(PROGRAMS),$(GOBUILD) -o build/$(p) ./cmd/$(p) &&) true
	libnss_mesh/build.sh "$(CURDIR)/build/libnss_mesh.so.2"

demo: ## three hosts, a mesh, and names in every program; needs root; KEEP=1 leaves the hosts up
	@packaging/needs root go gcc libc6-dev binutils iproute2 iputils-ping bind9-dnsutils curl
	@$(MAKE) --no-print-directory build
	@$(GOBUILD) -o build/demo ./cmd/internal/demo
	@build/demo

demo-mesh: ## five hosts, three behind NATs: ssh and a copy outlive a move, a cut and a relay's death; needs root; KEEP=1 as in demo; RECORD=docs/demo-mesh.md
	@packaging/needs root go gcc libc6-dev binutils iproute2 iputils-ping nftables openssh-client openssh-server
	@$(MAKE) --no-print-directory build
	@$(GOBUILD) -o build/demo ./cmd/internal/demo
	@build/demo -story mesh -record "$(RECORD)"

demo-services: ## Apache with a Nagios check, killed and revived, found by NSS, DNS and DNS-SD; needs root; KEEP=1 and RECORD as in demo-mesh
	@packaging/needs root go gcc libc6-dev binutils iproute2 iputils-ping bind9-dnsutils curl apache2-bin monitoring-plugins-basic
	@$(MAKE) --no-print-directory build
	@$(GOBUILD) -o build/demo ./cmd/internal/demo
	@build/demo -story services -record "$(RECORD)"

test: ## all tests; those that need root are skipped, with the reason, without it
	@packaging/needs go gcc libc6-dev binutils
	@if go run $(GOTESTSUM) --version >/dev/null 2>&1; then \
		go run $(GOTESTSUM) --format pkgname --format-hide-empty-pkg -- -p 2 -timeout 15m ./...; \
	else go test -p 2 -timeout 15m ./...; fi

NSS_NEEDS := root go gcc libc6-dev binutils iproute2 iputils-ping util-linux openssh-client curl python3 nodejs default-jdk-headless valgrind

test-nss: ## what harms NSS modules, against ours, a naive one in Go and one in C: docs/nss-hazards.md; needs root
	@packaging/needs $(NSS_NEEDS) gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-user-static
	go vet -tags hazard ./libnss_mesh
	go test -tags hazard -timeout 20m -run 'TestOtherArchitectures|TestGateBites' ./libnss_mesh
	go run ./cmd/internal/hazard -o docs/nss-hazards.md

test-net: ## nodes behind every kind of NAT and what breaks between them (docs/net-matrix.md; a part: ARGS="-run REGEXP"), against a real router (miniupnpd) and on real LANs, in namespaces; needs root
	@packaging/needs root go iproute2 iputils-ping nftables miniupnpd-nftables
	go test -count=1 -timeout 10m ./cmd/internal/nettest
	@mkdir -p build
	@$(GOBUILD) -o build/meshd ./cmd/meshd
	@$(GOBUILD) -o build/netlab ./cmd/internal/netlab
	build/netlab -o docs/net-matrix.md $(ARGS)

test-store: ## a mesh of five real nodes and all that can happen to the store they keep (docs/store-faults.md), in namespaces; needs root
	@packaging/needs root go iproute2
	@mkdir -p build
	@$(foreach p,mesh meshd meshd-etcd,$(GOBUILD) -o build/$(p) ./cmd/$(p) &&) $(GOBUILD) -o build/storelab ./cmd/internal/storelab
	@mkdir -p build/skewed && from=$$(go env GOROOT)/src/time/time.go && sed 's/^\tsec, nsec, mono := runtimeNow()$$/&\n\tsec += 3600/' $$from >build/skewed/time.go && \
	grep -q 'sec += 3600' build/skewed/time.go && echo "{\"Replace\":{\"$$from\":\"$(CURDIR)/build/skewed/time.go\"}}" >build/skewed/overlay.json
	@$(foreach p,meshd meshd-etcd,$(GOBUILD) -overlay build/skewed/overlay.json -o build/skewed/$(p) ./cmd/$(p) &&) true
	build/storelab -o docs/store-faults.md $(ARGS)

test-etcd: ## an etcd that is there already: the store's contract, roles and every error with Debian's etcd 3.5, 3.4 refused, and CoreDNS; needs root
	@packaging/needs root go iproute2 bind9-dnsutils
	coredns=$$(packaging/test/coredns) && new=$$(packaging/test/etcd trixie) && old=$$(packaging/test/etcd bookworm) && \
	export MESH_COREDNS=$$coredns MESH_ETCD=$$new/etcd MESH_ETCDCTL=$$new/etcdctl MESH_ETCD_OLD=$$old/etcd && \
	go test -count=1 -timeout 10m -v ./resolver/store/etcd && go test -count=1 -v -run 'TestForeignStore|TestProjection|TestRealCoreDNS' ./cmd/meshd

test-dns-setup: ## mesh dns setup, undo and takeover with the real systemd-resolved, dnsmasq and openresolv, in namespaces, and on a booted Debian, there with NetworkManager too; needs root
	@packaging/needs root go iproute2 bind9-dnsutils dnsmasq-base dbus-daemon util-linux debootstrap systemd-container
	resolved=$$(packaging/test/resolved) && MESH_RESOLVED=$$resolved go test -count=1 -timeout 10m -v -run 'TestSystemdResolved|TestDnsmasq|TestOpenresolv|TestTakeover' ./cmd/meshd
	packaging/test/test-resolved
	packaging/test/test-networkmanager

test-dns: ## the DNS server asked by dig, kdig, drill and dnsperf, and a real BIND that carries its zones; needs root
	@packaging/needs root go iproute2 bind9 bind9-dnsutils knot-dnsutils ldnsutils dnsperf
	go test -count=1 -timeout 10m -v -run TestRealDNS ./cmd/meshd

test-prometheus: ## a real Prometheus finds a service, and scrapes it while it is well; needs root
	@packaging/needs root go iproute2 curl python3 prometheus
	go test -count=1 -timeout 10m -v -run TestRealPrometheus ./cmd/meshd

test-consul: ## a real consul-template, and a Prometheus with consul_sd_configs, built through the Go proxy, against Consul's HTTP API; needs root; slow once
	@packaging/needs root go iproute2 curl python3
	dir=$$(packaging/test/consul) && MESH_CONSUL_TEMPLATE=$$dir/consul-template MESH_PROMETHEUS=$$dir/prometheus \
	go test -count=1 -timeout 10m -v -run 'TestRealConsulTemplate|TestRealPrometheus' ./cmd/meshd

test-checks: ## programs of health checks on booted Debian systems: plugins, and a hostile one that cannot read the node's key; needs root
	@packaging/needs root go debootstrap systemd-container iproute2
	packaging/test/test-checks
	SUITE=bookworm packaging/test/test-checks

race: ## the tests with the race detector, the long ones short
	@packaging/needs go gcc libc6-dev binutils
	go test -race -short -p 2 -timeout 15m ./...

check: build ## vet, staticcheck, the repository's rules, and what the build refuses of the module
	@packaging/needs go gcc libc6-dev binutils
	go vet ./...
	go run $(STATICCHECK) ./...
	go test ./cmd/internal/archtest

sim: ## meshes in memory: SEEDS (100) new scenarios on broken networks; SEED=n plays one again, PACKETS=1 with its datagrams
	@packaging/needs go
	SEEDS=$(SEEDS) SEED=$(SEED) PACKETS=$(PACKETS) go test -count=1 -timeout 0 -v -run '^TestSeeds$$' ./vpn/sim

sim-scale: ## what meshes of SCALE (10,100,1000) nodes cost, as a table; much memory, minutes
	@packaging/needs go
	SCALE=$(SCALE) go test -count=1 -timeout 0 -v -run '^TestScale$$' ./vpn/sim

fuzz: ## every fuzz target for FUZZTIME (30s)
	@packaging/needs go gcc libc6-dev
	@grep -rHo '^func Fuzz[A-Za-z0-9_]*' --include='*_test.go' . | sed 's/:func /\t/' | sort | \
	while IFS="$$(printf '\t')" read -r file name; do \
		echo "== $$name $${file#./}"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$(dirname "$$file")" </dev/null || exit 1; \
	done

fuzz-nss: ## 10,000,000 damaged snapshots, read by our module and by one in C; needs root
	@packaging/needs $(NSS_NEEDS)
	go run ./cmd/internal/hazard -run '^$$' -damages 10000000 -seed "$$(date +%s)"

bench: build ## lookups and tunnels, measured beside what they replace; needs root
	@packaging/needs root go gcc libc6-dev
	go run ./libnss_mesh/bench
	go run ./vpn/bench

bench-nss: ## lookups at every size and beside every rival, also into docs/nss-speed.md; needs root; minutes
	@packaging/needs root go gcc libc6-dev binutils strace dnsmasq-base
	go run ./libnss_mesh/bench -full -markdown docs/nss-speed.md

bench-net: ## tunnels beside wireguard-go, tinc and nebula, direct, relayed and round a cut, also into docs/net-speed.md; needs root; minutes
	@packaging/needs root go iproute2 tinc nebula
	go run ./vpn/bench -full -markdown docs/net-speed.md

bench-store: ## the book of names: a change until getaddrinfo sees it elsewhere, loading, memory, messages, also into docs/store-speed.md; needs root; minutes
	@packaging/needs root go gcc libc6-dev binutils iproute2
	go run ./cmd/internal/storebench -markdown docs/store-speed.md

bench-dns: ## the DNS server beside BIND, dnsmasq and systemd-resolved: queries a second, latency, memory, also into docs/dns-speed.md; needs root; minutes
	@packaging/needs root go iproute2 bind9 dnsmasq-base dnsperf
	CGO_ENABLED=0 go run ./cmd/internal/dnsbench -markdown docs/dns-speed.md

deb: ## build/deb: Debian packages for amd64 and arm64, built and linted in a trixie system of their own; needs root
	@packaging/needs root go git debootstrap
	packaging/build-deb
	packaging/lint-deb

repro: ## the packages twice, in another folder, time, time zone, umask and cache: the same bytes; needs root
	@packaging/needs root go git debootstrap
	packaging/repro

test-deb: ## builds and lints the packages, then lives with them on booted bookworm and trixie; writes docs/packaging.md's table
	@packaging/needs root go git gcc libc6-dev binutils debootstrap systemd-container iproute2 piuparts autopkgtest rpm busybox-static bind9-dnsutils
	packaging/test/test-deb -b
	for suite in bookworm trixie; do \
		packaging/test/test-chroot $$suite && packaging/test/test-piuparts $$suite && packaging/test/autopkgtest $$suite && \
		packaging/test/test-logins $$suite || exit; \
	done
	packaging/packages
	packaging/test/test-packages

cross: ## mesh and meshd for routers, darwin, FreeBSD and Windows: built and vetted
	@packaging/needs go
	packaging/cross

packages: ## build/packages: rpm (glibc) and apk (musl)
	@packaging/needs go gcc libc6-dev binutils
	packaging/packages

clean: ## remove build/
	rm -rf build
