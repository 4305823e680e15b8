package steps

import (
	"cmp"
	"os"
	"path/filepath"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// dropEmptyState removes the files of the kubelet's own state that a power cut has left empty, from the directory that --root-dir names. A kubelet
// with such a file exits at each start, on either runtime: "could not restore state from checkpoint: unexpected end of JSON input"
// (kubernetes/kubernetes#135711). An empty file holds nothing, and without it the kubelet begins with an empty state. The kubelet is stopped
// meanwhile.
func dropEmptyState(found facts.Found, report engine.Report) error {
	setup, err := found.Kubelet()
	if err != nil {
		return err
	}
	dir, _ := setup.Flag("root-dir")
	// cpu_manager_state, memory_manager_state, dra_manager_state, pod_status_manager_state, allocated_pods_state, actuated_pods_state.
	files, err := filepath.Glob(filepath.Join(cmp.Or(dir, "/var/lib/kubelet"), "*_state"))
	if err != nil {
		return err
	}
	for _, file := range files {
		info, err := os.Lstat(file)
		if err != nil || !info.Mode().IsRegular() || info.Size() > 0 {
			continue
		}
		if err := host.Remove(file); err != nil {
			return err
		}
		report.Warn("removed " + file + ", which was empty: the kubelet does not start with such a file")
	}
	return nil
}
