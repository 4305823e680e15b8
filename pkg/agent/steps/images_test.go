package steps

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestUndoImagesOfHungContainerd: a containerd that hangs when the images are to be removed is restarted first.
func TestUndoImagesOfHungContainerd(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			config, err := containerd.Render([]byte(agenttest.Isolated), containerd.Settings{Snapshotter: "native"})
			if err != nil {
				t.Fatal(err)
			}
			daemon := agenttest.Start(t, release, string(config), "")
			nodetest.ImportTestImage(t, daemon.Address)
			memo, err := json.Marshal(facts.Found{ContainerdAddress: daemon.Address, Facts: protocol.Facts{NewEndpoint: "unix://" + daemon.Address}})
			if err != nil {
				t.Fatal(err)
			}
			systemd := &nodetest.Hooked{Units: nodetest.NewUnits(t, node.ContainerdUnit), On: func(verb string) error {
				if verb == "restart" { // systemd sends SIGCONT after SIGTERM
					return daemon.Resume()
				}
				return nil
			}}
			h := &node.Host{Spec: protocol.Spec{Run: "run"}, Systemd: host.Systemd{Run: systemd, Dir: t.TempDir()}, Records: func() []journal.Record {
				return []journal.Record{{Kind: journal.KindIntent, Phase: protocol.PhasePrepare, Step: facts.InspectID, Memo: memo}}
			}}
			if err := daemon.Hang(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := importImages(h).Revert(ctx, []byte(`{}`), node.Silent{}); err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(systemd.Verbs, "restart") {
				t.Errorf("systemctl was asked to %v", systemd.Verbs)
			}
			err = containerd.With(daemon.Address, func(c *client.Client) error {
				left, err := imageNames(ctx, c)
				if len(left) > 0 {
					t.Errorf("%v are left", left)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
