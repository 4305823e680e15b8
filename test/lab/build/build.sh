#!/usr/bin/env bash
# Builds the binaries that lab nodes run (Kubernetes, etcd, CoreDNS, containerd, cri-dockerd, cri-tools, a registry) from
# their upstream Go modules, one folder here each with its own go.mod, so that the product's stays clean.
# Cold builds take minutes; results are kept in $KUBECTL_RUNTIME_CACHE/bin/<name>-<hash of its inputs> and reused.
#   build.sh [NAME…]   builds the named folders (all without names), prints nothing but progress on stderr
#   build.sh critest   CRI's conformance tests, which no lab needs by itself: see test/lab/README.md
#   build.sh containerd-1.7 containerd-2.0   for tests of their configuration
#   build.sh kubernetes-1.17 …   old API servers, which only `make api-versions` needs (1.17: `make api`, too)
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

# openapi DIR VERSION SPEC: modules of Kubernetes before 1.24 lack a package that the API server needs, which is generated from the types. Has the
# build in DIR use a copy of its module with that package from VERSION of the module, which describes fields that were added later, too. SPEC is
# the package of kube-openapi's types; old versions of that have them in another.
openapi() {
	local dir=$1 version=$2 spec=$3 module copy=$1/kubernetes part
	module=$(cd "$dir" && go mod download k8s.io/kubernetes && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
	mkdir "$copy"
	for part in cmd pkg plugin third_party go.mod; do cp -r "$module/$part" "$copy/"; done
	chmod -R u+w "$copy"
	module=$(cd "$here/kubernetes-${version%.*}" && go mod download k8s.io/kubernetes && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
	sed -e '/GenerateOpenAPIV3OneOfSchema/d' -e "s#^\tspec \".*\"#\tspec \"$spec\"#" \
		"$module/pkg/generated/openapi/zz_generated.openapi.go" >"$copy/pkg/generated/openapi/zz_generated.openapi.go"
	(cd "$dir" && go mod edit -replace "k8s.io/kubernetes=$copy")
}

# build NAME: `go build` of every main package listed in build.flags (default "."), with the ldflags listed there; or, of packages
# listed as tests, the tests as a program.
build() {
	local name=$1 out tmp started dir packages=. tests="" ldflags="" tags="" openapi="" spec=k8s.io/kube-openapi/pkg/validation/spec
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
	dir=$here/$name
	export CGO_ENABLED=0 GOFLAGS="-mod=mod -trimpath"
	if [ -n "$openapi" ]; then
		dir=$tmp.src
		rm -rf "$dir" && cp -r "$here/$name" "$dir"
		openapi "$dir" "$openapi" "$spec"
	fi
	# shellcheck disable=SC2086
	(
		cd "$dir"
		[ -z "$packages" ] || go build -o "$tmp/" -tags "$tags" -ldflags "-s -w $ldflags" $packages
		for package in $tests; do go test -c -o "$tmp/${package##*/}" -ldflags "-s -w $ldflags" "$package"; done
	)
	rm -rf "$tmp.src"
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
