package host_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// TestPowerFailsAfterKill has the agent killed between the change of a file and its sync, and the power fail after the attempt that finds
// the file as it is to be.
func TestPowerFailsAfterKill(t *testing.T) {
	for _, journal := range []bool{true, false} {
		disk := agenttest.NewDisk(t, journal)
		files := host.Files{Dir: filepath.Join(disk.Dir, "run/files")}
		path := filepath.Join(disk.Dir, "etc/kubelet.conf")
		// put changes the file as a process does that is killed before it syncs.
		put := func(content string) {
			t.Helper()
			temp := path + ".temp"
			if err := os.WriteFile(temp, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(temp, path); err != nil {
				t.Fatal(err)
			}
		}
		expect := func(when, want string) {
			t.Helper()
			got, err := os.ReadFile(filepath.Join(disk.AfterPowerFailed(), strings.TrimPrefix(path, disk.Dir)))
			if err != nil || string(got) != want {
				t.Errorf("journal %t: %s, the file holds %q, want %q: %v", journal, when, got, want, err)
			}
		}
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		put("old")
		change, err := files.Plan(path, []byte("old"), []byte("new"))
		if err == nil {
			err = host.SyncFileSystems(disk.Dir)
		}
		if err != nil {
			t.Fatal(err)
		}
		put("new")
		if err := files.Apply(change); err != nil {
			t.Fatal(err)
		}
		expect("after it was applied again", "new")
		put("old")
		if _, err := files.Undo(change); err != nil {
			t.Fatal(err)
		}
		expect("after it was undone again", "old")
	}
}
