package assess

import (
	"slices"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestHostChecks: every check that an agent can name is in the list, and the other way round.
func TestHostChecks(t *testing.T) {
	var here []string
	for _, check := range Checks() {
		if check.OnHost {
			here = append(here, check.ID)
		}
	}
	theirs := protocol.HostChecks()
	slices.Sort(here)
	slices.Sort(theirs)
	if !slices.Equal(here, theirs) {
		t.Errorf("pkg/assess has\n%v, pkg/protocol\n%v", here, theirs)
	}
}

func TestFromHost(t *testing.T) {
	found := []protocol.Finding{
		{Check: protocol.CheckVersions, Message: "kubelet v1.23.17"},
		{Check: "host-of-tomorrow", Message: "new"},
		{Check: protocol.CheckSettingLost, Message: "iptables"},
		{Check: protocol.CheckSettingLost, Message: "icc"},
		{Check: protocol.CheckSpace, Message: "full", Hint: "prune"},
	}
	got := FromHost("n", found, []string{protocol.CheckVersions})
	want := []Finding{
		{Check: "host-of-tomorrow", Category: Node, Severity: Warning, Node: "n", Detail: "new"},
		{Check: protocol.CheckSpace, Category: Node, Severity: Blocker, Node: "n", Detail: "full", Hint: "prune"},
		{Check: protocol.CheckSettingLost, Category: Node, Severity: Warning, Node: "n", Detail: "icc"},
		{Check: protocol.CheckSettingLost, Category: Node, Severity: Warning, Node: "n", Detail: "iptables"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	api := []Finding{{Check: "node-not-ready", Node: "m"}, {Check: "drain-budget", Node: "n"}}
	if merged := ids(Merge(api, got[1:])); !slices.Equal(merged, []string{"node-not-ready", protocol.CheckSpace, protocol.CheckSettingLost, protocol.CheckSettingLost, "drain-budget"}) {
		t.Errorf("merged %v", merged)
	}
}

// TestIgnoring: what a switch refuses by itself cannot be ignored, and the error names the flag that accepts it.
func TestIgnoring(t *testing.T) {
	for id, want := range map[string]string{
		"drain-budget": "", "workload-docker-socket": "", protocol.CheckSettingLost: "",
		"node-not-ready":         "node-not-ready cannot be ignored: a switch refuses what it finds",
		"drain-bare-pod":         "drain-bare-pod cannot be ignored: a switch refuses what it finds, unless --force accepts it",
		protocol.CheckForeign:    "host-foreign-containers cannot be ignored: a switch refuses what it finds, unless --keep-docker accepts it",
		protocol.CheckContainerd: "host-containerd cannot be ignored: a switch refuses what it finds",
		"nothing":                `no check is called "nothing": docs/checks.md lists them`,
	} {
		got := ""
		if err := ValidateIDs([]string{id}); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q", id, got)
		}
	}
}
