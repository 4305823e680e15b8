//go:build tools

// Package tools names the upstream commands that build.sh builds here.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
)
