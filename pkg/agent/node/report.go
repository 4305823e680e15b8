package node

import "github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"

// Silent is an engine.Report that nobody reads.
type Silent struct{}

// Progress is dropped.
func (Silent) Progress(string, int64, int64, string) {}

// Info is dropped.
func (Silent) Info(string) {}

// Warn is dropped.
func (Silent) Warn(string) {}

// Facts are dropped.
func (Silent) Facts(protocol.Facts) {}
