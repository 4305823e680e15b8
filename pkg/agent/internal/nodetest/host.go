package nodetest

import (
	"encoding/json"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// HostWith is a Host whose inspection found what is given.
func HostWith(t *testing.T, found facts.Found, spec protocol.Spec) *node.Host {
	t.Helper()
	memo, err := json.Marshal(found)
	if err != nil {
		t.Fatal(err)
	}
	records := []journal.Record{
		{Kind: journal.KindOpen, Phase: protocol.PhasePrepare},
		{Kind: journal.KindIntent, Phase: protocol.PhasePrepare, Step: facts.InspectID, Memo: memo},
		{Kind: journal.KindDone, Phase: protocol.PhasePrepare, Step: facts.InspectID},
	}
	return &node.Host{Spec: spec, RunDir: t.TempDir(), Records: func() []journal.Record { return records }}
}
