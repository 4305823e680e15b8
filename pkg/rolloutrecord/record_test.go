package rolloutrecord

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

const goodSpec = `{"operation":"switch","selection":["--all=true"],"nodes":3,"maxUnavailable":"1","image":"agent:1","owner":"bob@desk"}`

func object(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: Labels()}, Data: data}
}

// TestReadRefuses: a ConfigMap that is no record is named with what is wrong.
func TestReadRefuses(t *testing.T) {
	for _, test := range []struct {
		name, object string
		data         map[string]string
		want         string
	}{
		{"name", "kube-root-ca.crt", map[string]string{"spec": goodSpec}, "rollout kube-root-ca.crt: that is no name of a rollout"},
		{"no spec", "switch-aaaaa", nil, "rollout switch-aaaaa: its spec cannot be read: unexpected end of JSON input"},
		{"no JSON", "switch-aaaaa", map[string]string{"spec": "{"}, "its spec cannot be read"},
		{"wrong type", "switch-aaaaa", map[string]string{"spec": goodSpec, "status": `{"counts":"many"}`}, "its status cannot be read"},
		{"control", "switch-aaaaa", map[string]string{"spec": goodSpec, "control": `[]`}, "its control cannot be read"},
		{"other operation", "rollback-aaaaa", map[string]string{"spec": goodSpec}, `its operation is "switch"`},
		{"hidden operation", "switch-aaaaa", map[string]string{"spec": `{"operation":"\u001b[2J","selection":["a"]}`}, `its operation is "\\u001b[2J"`},
		{"no nodes", "switch-aaaaa", map[string]string{"spec": `{"operation":"switch"}`}, "it has 0 arguments"},
		{"large", "switch-aaaaa", map[string]string{"spec": goodSpec, "status": strings.Repeat(" ", maxStatusBytes+1)}, "its status has more than 65536 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := read(object(test.object, test.data))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%+v, %v; want %q", r, err, test.want)
			}
		})
	}
}

// TestReadBounds: what others wrote is cut and made visible.
func TestReadBounds(t *testing.T) {
	status := Status{Counts: Counts{Done: -7, Failed: 1 << 40}, Waiting: strings.Repeat("w", 5000), Outcome: "Won", Reason: "a\nb\x1b[2J"}
	for range 100 {
		status.Failures = append(status.Failures, Failure{Node: "n\u202e", Result: "r", Reason: strings.Repeat("x", 400)})
	}
	text, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	r, err := read(object("switch-aaaaa", map[string]string{"spec": goodSpec, "status": string(text)}))
	if err != nil {
		t.Fatal(err)
	}
	s := r.Status
	if s.Counts.Done != 0 || s.Counts.Failed != maxCount || len(s.Waiting) > maxWord || s.Outcome != Failed || s.Reason != `a b\u001b[2J` || len(s.Failures) != maxFailures {
		t.Errorf("%+v", s)
	}
	if f := s.Failures[0]; f.Node != `n\u202e` || len(f.Reason) > maxReason {
		t.Errorf("%+v", f)
	}
}

// FuzzRead: whatever a ConfigMap holds, what is shown of it has no control characters and is bounded.
func FuzzRead(f *testing.F) {
	f.Add(goodSpec, `{"counts":{"done":1}}`, `{"paused":true,"by":"x"}`)
	f.Add(goodSpec, `{"failures":[{"node":"\u001b"}]}`, `{"aborted":true}`)
	f.Fuzz(func(t *testing.T, spec, status, control string) {
		r, err := read(object("switch-aaaaa", map[string]string{"spec": spec, "status": status, "control": control}))
		if err != nil {
			if text := err.Error(); text != untrusted.Line(text, 2<<10) {
				t.Errorf("error %q", text)
			}
			return
		}
		for _, driven := range []bool{true, false} {
			e := &Entry{Record: r, State: r.State(driven)}
			for _, text := range []string{e.Sentence(), e.Why(), e.Conclusion(), e.Spec.Owner, e.Spec.Image} {
				if untrusted.Visible(text) != text || len(text) > 4<<10 {
					t.Errorf("%q", text)
				}
			}
			_, _ = Pause(e)
			_, _ = Resume(e)
			_, _ = Abort(e)
		}
	})
}

func TestParseName(t *testing.T) {
	for _, text := range []string{"switch-x7k2p", "rollout/switch-x7k2p"} {
		if name, err := ParseName(text); name != "switch-x7k2p" || err != nil {
			t.Errorf("%q: %q, %v", text, name, err)
		}
	}
	for _, text := range []string{"", "node-1", "switch-", "switch-x7k2p/..", "switch-X7k2p", "rollout-slots", "rollout/rollout/switch-x7k2p"} {
		if name, err := ParseName(text); err == nil {
			t.Errorf("%q is taken for %q", text, name)
		}
	}
}
