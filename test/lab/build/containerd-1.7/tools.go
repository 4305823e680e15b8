//go:build tools

// Package tools names the upstream command that build.sh builds here: tests ask what it makes of a config.
package tools

import _ "github.com/containerd/containerd/cmd/containerd"
