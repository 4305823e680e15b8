package e2e

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/preview"
)

// planned is what `kubectl runtime plan -o json` says of one node, and its files before the switch.
type planned struct {
	Findings []struct{ Check, Severity, Detail string }
	Nodes    []struct {
		Name          string
		Verdict       string
		HostInspected bool
		Steps         []struct{ Phase, ID string }
		Files         []struct{ Step, Path, Action, Link, Diff string }
	}

	files    map[string]string // path to what tells a change
	contents map[string][]byte // of the files that are to change
}

// testPlan has a plan made of node-1, which changes nothing there, and keeps it for testPlanHeld.
func (c *cluster) testPlan(t *testing.T) {
	const touched = `cd / && find etc usr opt root var/lib/kubectl-runtime var/lib/kubelet/config.yaml var/lib/kubelet/*.env -newer run/plan-begins 2>/dev/null | sort; ` +
		`systemctl list-units --all --plain --no-legend 'kubectl-runtime*'; systemctl list-unit-files --no-legend 'kubectl-runtime*' || true`
	pods := c.podIDs(t, "node-1")
	files := c.fingerprint(t, "node-1")
	c.exec(t, "node-1", "touch /run/plan-begins; sleep 0.1")
	r := c.runtime(t, 0, "plan", "node-1", "--image", agentImage, "-o", "json")
	if now := c.exec(t, "node-1", touched); now != "" {
		t.Errorf("the plan touched:\n%s", now)
	}
	if d := differences(files, c.fingerprint(t, "node-1")); d != "" {
		t.Errorf("files changed:\n%s", d)
	}
	c.untouched(t, "node-1", pods)

	c.plan = &planned{contents: map[string][]byte{}}
	if err := json.Unmarshal([]byte(r.stdout), c.plan); err != nil {
		t.Fatal(err)
	}
	if len(c.plan.Nodes) != 1 || !c.plan.Nodes[0].HostInspected || c.plan.Nodes[0].Verdict != "not-blocked" || len(c.plan.Nodes[0].Steps) < 10 {
		t.Fatalf("%+v", c.plan.Nodes)
	}
	for _, f := range c.plan.Findings {
		if f.Severity != "info" {
			t.Errorf("a false alarm: %+v", f)
		}
	}
	c.plan.files = c.configuration(t, "node-1")
	for _, file := range c.plan.Nodes[0].Files {
		if c.plan.contents[file.Path] == nil {
			c.plan.contents[file.Path] = c.content(t, "node-1", file.Path)
		}
	}
	if text := r.stdout; !strings.Contains(text, "10.88.0.1:5443, which ") {
		t.Error("the plan does not name the registry that an image came from")
	}
	// People read the same.
	text := c.runtime(t, 0, "plan", "node-1", "--image", agentImage).stdout
	for _, file := range c.plan.Nodes[0].Files {
		if !strings.Contains(text, file.Action+" "+file.Path) {
			t.Errorf("%s is not in the plan for people", file.Path)
		}
	}
}

// testPlanHeld: the switch changed the files that the plan had shown, all of them, as shown, and no other.
func (c *cluster) testPlanHeld(t *testing.T) {
	now := c.configuration(t, "node-1")
	changed := map[string]bool{}
	for path, state := range c.plan.files {
		if now[path] != state {
			changed[path] = true
		}
	}
	for path := range now {
		if _, before := c.plan.files[path]; !before {
			changed[path] = true
		}
	}
	shown := map[string]bool{}
	for _, file := range c.plan.Nodes[0].Files {
		shown[file.Path] = true
		if file.Link != "" {
			continue
		}
		if diff := preview.Diff(file.Path, c.plan.contents[file.Path], c.content(t, "node-1", file.Path)); diff != file.Diff {
			t.Errorf("%s was planned\n%sand became\n%s", file.Path, file.Diff, diff)
		}
	}
	if got, want := slices.Sorted(maps.Keys(changed)), slices.Sorted(maps.Keys(shown)); !slices.Equal(got, want) {
		t.Errorf("changed: %q\nshown:   %q", got, want)
	}
	// That switch is what the next one is expected to be like.
	var next struct {
		Order    []string
		Expected struct{ MeasuredNodes, OutOfServiceSeconds, NodeSeconds, TotalSeconds int }
	}
	if err := json.Unmarshal([]byte(c.runtime(t, 0, "plan", "--api-only", "-o", "json").stdout), &next); err != nil {
		t.Fatal(err)
	}
	if e := next.Expected; !slices.Equal(next.Order, []string{"node-2"}) || e.MeasuredNodes != 1 || e.OutOfServiceSeconds < 1 || e.NodeSeconds <= e.OutOfServiceSeconds || e.TotalSeconds != e.NodeSeconds {
		t.Errorf("%+v", next)
	}
}

// configuration maps the files and links of /etc and the kubelet's files to what tells a change of each.
func (c *cluster) configuration(t *testing.T, node string) map[string]string {
	t.Helper()
	out := c.exec(t, node, `find /etc /var/lib/kubelet -path /var/lib/kubelet/pods -prune -o -path /var/lib/kubelet/pki -prune -o \
			\( -type f -o -type l \) \( -path '/etc/*' -o -name '*.env' -o -name '*.yaml' \) ! -path /etc/resolv.conf ! -path /etc/machine-id -printf '%p\n' |
		while read -r f; do if [ -L "$f" ]; then echo "$f -> $(readlink "$f")"; else echo "$f $(sha256sum < "$f") $(stat -c %a:%u:%g "$f")"; fi; done`)
	files := map[string]string{}
	for line := range strings.SplitSeq(out, "\n") {
		path, state, _ := strings.Cut(line, " ")
		files[path] = state
	}
	return files
}

// content is nil for a file that is not there.
func (c *cluster) content(t *testing.T, node, path string) []byte {
	t.Helper()
	text := c.exec(t, node, "[ ! -e '"+path+"' ] || { echo x; base64 -w0 '"+path+"'; }")
	if text == "" {
		return nil
	}
	_, encoded, _ := strings.Cut(text, "\n")
	data, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return append([]byte{}, data...)
}
