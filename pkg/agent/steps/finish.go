package steps

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Finish fills in what a phase's result says about the host: the runtime that the node is left on, and the files that differ from
// before. It tries for a few seconds and leaves out what it cannot find.
func Finish(ctx context.Context, h *node.Host, result *protocol.Result) {
	result.ChangedFiles = changedFiles(h)
	found, err := facts.Of(h)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, switched := engine.Memo(h.Records(), kubeletStartID); switched {
		_ = cri.With(ctx, found.Facts.NewEndpoint, func(c *cri.Client) error {
			check, err := c.Check(ctx)
			if err == nil {
				result.RuntimeVersion = check.RuntimeName + "://" + check.RuntimeVersion
			}
			return err
		})
		return
	}
	_ = docker.With(found.DockerSocket, func(d *docker.Client) error {
		info, err := d.Info(ctx)
		if err == nil {
			result.RuntimeVersion = "docker://" + info.Version
		}
		return err
	})
}

// changedFiles lists the files whose change was made and not undone.
func changedFiles(h *node.Host) []string {
	var paths []string
	list := List(h)
	for _, s := range slices.Concat(list[protocol.PhasePrepare], list[protocol.PhaseCutover], list[protocol.PhaseVerify]) {
		raw, ok := engine.Memo(h.Records(), s.ID())
		if s, changes := s.(interface {
			changedFiles(json.RawMessage) []string
		}); ok && changes {
			paths = append(paths, s.changedFiles(raw)...)
		}
	}
	return paths
}
