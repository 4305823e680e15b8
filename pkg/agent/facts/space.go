package facts

import (
	"cmp"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
)

// Spaces are the directories that images are written to, below containerd's root and where Docker has its temporary files, with what has to
// stay free there: the node is in service, and below its eviction thresholds a kubelet reports DiskPressure and evicts pods.
func (i Found) Spaces(containerdRoot string) (root, temporary images.Space, err error) {
	setup, err := i.Kubelet()
	if err != nil {
		return root, temporary, err
	}
	thresholds, err := setup.DiskThresholds()
	if err != nil {
		return root, temporary, err
	}
	nodeDir, _ := setup.Flag("root-dir")
	nodeDir = cmp.Or(nodeDir, "/var/lib/kubelet")
	if root, err = spaceIn(containerdRoot, nodeDir, thresholds); err != nil {
		return root, temporary, err
	}
	temporary, err = spaceIn(cmp.Or(i.Docker.TempDir, filepath.Join(i.Facts.DockerRoot, "tmp")), nodeDir, thresholds)
	return root, temporary, err
}

// spaceIn takes the file system of dir for that of the runtime: containerd's will be it, and Docker's is. It may be the kubelet's, too.
func spaceIn(dir, nodeDir string, thresholds []kubelet.Threshold) (images.Space, error) {
	space := images.Space{Dir: host.Existing(dir)}
	var fs unix.Statfs_t
	var own, node unix.Stat_t
	err := unix.Statfs(space.Dir, &fs)
	if err == nil {
		err = unix.Stat(space.Dir, &own)
	}
	if err == nil {
		err = unix.Stat(host.Existing(nodeDir), &node)
	}
	if err != nil {
		return space, fmt.Errorf("look for space in %s: %w", space.Dir, err)
	}
	for _, threshold := range thresholds {
		if threshold.Signal == kubelet.NodeFS && own.Dev != node.Dev {
			continue
		}
		keep, err := threshold.Bytes(int64(fs.Blocks) * fs.Bsize) //nolint:gosec // no file system is that large
		if err != nil {
			return space, err
		}
		if keep > space.Keep {
			space.Keep, space.Why = keep, fmt.Sprintf("the kubelet's eviction threshold %s", threshold)
		}
	}
	return space, nil
}
