package inspect

import (
	"cmp"
	"context"
	"slices"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestTakingChecks: a check that fails is a finding with its hint, and its warnings are findings of the check that it names for them.
func TestTakingChecks(t *testing.T) {
	for i, l := range checks() {
		if !slices.Contains(protocol.HostChecks(), l.id) || !slices.Contains(protocol.HostChecks(), cmp.Or(l.warning, protocol.CheckNote)) {
			t.Errorf("check %d has IDs that nobody knows: %s, %s", i, l.id, cmp.Or(l.warning, protocol.CheckNote))
		}
		for _, need := range l.needs {
			if !slices.ContainsFunc(checks()[:i], func(before check) bool { return before.id == need }) {
				t.Errorf("%s needs %s, which comes later", l.id, need)
			}
		}
	}
	i := &inspection{h: &node.Host{}, report: node.Silent{}}
	err := i.take(t.Context(), check{id: protocol.CheckUnits, run: func(context.Context, *inspection) error { return node.Refuse("cure it", "no %s", "good") }})
	if want := []protocol.Finding{{Check: protocol.CheckUnits, Message: "no good", Hint: "cure it"}}; err == nil || !slices.Equal(i.findings, want) || !slices.Equal(i.failed, []string{protocol.CheckUnits}) {
		t.Errorf("%v: %+v, failed %v", err, i.findings, i.failed)
	}
	i = &inspection{h: &node.Host{}, report: node.Silent{}}
	err = i.take(t.Context(), check{warning: protocol.CheckAPI, run: func(_ context.Context, i *inspection) error { i.warn("a"); i.warn("a"); return nil }})
	if want := []protocol.Finding{{Check: protocol.CheckAPI, Message: "a"}}; err != nil || !slices.Equal(i.findings, want) || !slices.Equal(i.Facts.Warnings, []string{"a"}) {
		t.Errorf("%v: %+v, %v", err, i.findings, i.Facts.Warnings)
	}
}
