#!/usr/bin/env bash
# Builds the binaries that lab nodes run (Kubernetes, etcd, CoreDNS, containerd, cri-dockerd, cri-tools, a registry) from
# their upstream Go modules, one folder here each with its own go.mod, so that the product's stays clean.
# Cold builds take minutes; results are kept in $KUBECTL_RUNTIME_CACHE/bin/<name>-<hash of its inputs> and reused.
#   build.sh [NAME…]   builds the named folders (all without names), prints nothing but progress on stderr
#   build.sh critest   CRI's conformance tests, which no lab needs by itself: see test/lab/README.md
#   build.sh containerd-1.7 containerd-2.0   for tests of their configuration
#   build.sh --path NAME   prints the folder that holds NAME's binaries
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${KUBECTL_RUNTIME_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kubectl-runtime}
names=(etcd kubernetes-1.23 kubernetes-1.24 kubernetes-1.37 containerd cri-dockerd coredns cri-tools registry)

# path NAME: the cache folder, keyed by everything the build reads.
path() {
	local hash
	hash=$({ cd "$here/$1" && cat ./*.go go.mod go.sum build.flags 2>/dev/null; go env GOVERSION GOARCH; } | sha256sum | cut -c1-12)
	echo "$cache/bin/$1-$hash"
}

# build NAME: `go build` of every main package listed in build.flags (default "."), with the ldflags listed there; or, of packages
# listed as tests, the tests as a program.
build() {
	local name=$1 out tmp started packages=. tests="" ldflags=""
	out=$(path "$name")
	[ -e "$out/.complete" ] && return 0
	mkdir -p "$cache/bin"
	exec 9>"$cache/bin/$name.lock" && flock 9 # another build of the same may be under way
	[ -e "$out/.complete" ] && return 0
	started=$SECONDS
	echo "lab: building $name (once; kept in $out)" >&2
	tmp=$out.tmp.$$
	rm -rf "$tmp" && mkdir -p "$tmp"
	# shellcheck disable=SC1090,SC1091
	[ -f "$here/$name/build.flags" ] && . "$here/$name/build.flags"
	# shellcheck disable=SC2086
	(
		cd "$here/$name"
		export CGO_ENABLED=0 GOFLAGS="-mod=mod -trimpath"
		[ -z "$packages" ] || go build -o "$tmp/" -ldflags "-s -w $ldflags" $packages
		for package in $tests; do go test -c -o "$tmp/${package##*/}" -ldflags "-s -w $ldflags" "$package"; done
	)
	touch "$tmp/.complete"
	rm -rf "$out" && mv "$tmp" "$out"
	echo "lab: built $name in $((SECONDS - started)) s" >&2
}

if [ "${1:-}" = --path ]; then
	path "$2"
	exit
fi
[ $# -gt 0 ] && names=("$@")
for name in "${names[@]}"; do build "$name"; done
