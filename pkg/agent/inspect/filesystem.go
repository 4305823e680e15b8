package inspect

import (
	"cmp"
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images/adopt"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var fileSystemCheck = check{id: protocol.CheckFileSystem, needs: []string{protocol.CheckDockerConfig, protocol.CheckContainerd}, run: checkFileSystem}

// checkFileSystem refuses what overlayfs does not run on: xfs made with ftype=0, above all.
func checkFileSystem(_ context.Context, i *inspection) error {
	root, snapshotter := host.Existing(i.layout.Root), cmp.Or(desired.Snapshotter(i.Docker, i.layout), i.layout.Snapshotter)
	if snapshotter != adopt.Snapshotter {
		return nil
	}
	tells, err := host.TellsTypes(root)
	if err == nil && !tells {
		return node.Refuse("give containerd a root on a file system that can, such as xfs made with ftype=1, or ext4",
			"the file system of %s does not tell the types of directory entries (d_type), which the snapshotter %s needs", root, snapshotter)
	}
	return err
}
