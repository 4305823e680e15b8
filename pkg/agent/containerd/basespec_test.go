package containerd_test

import (
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
)

func TestBaseSpec(t *testing.T) {
	const defaults = `{"ociVersion": "1.0.2-dev", "process": {"user": {"uid": 0}, "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]},
		"linux": {"resources": {"devices": [{"allow": false, "access": "rwm"}], "big": 9223372036854775807}}}`
	got, err := containerd.BaseSpec([]byte(defaults), []containerd.Rlimit{{Name: "core", Soft: 0, Hard: -1}, {Name: "nproc", Soft: 5, Hard: 6}})
	if err != nil {
		t.Fatal(err)
	}
	flat := strings.Join(strings.Fields(string(got)), "")
	for _, want := range []string{
		`"rlimits":[{"hard":18446744073709551615,"soft":0,"type":"RLIMIT_CORE"},{"hard":6,"soft":5,"type":"RLIMIT_NPROC"}]`,
		`"ociVersion":"1.0.2-dev"`, `"user":{"uid":0}`, `"big":9223372036854775807`,
	} {
		if !strings.Contains(flat, want) {
			t.Errorf("%s is not in\n%s", want, got)
		}
	}
	if strings.Contains(flat, "1024") {
		t.Errorf("a limit that Docker has not:\n%s", got)
	}
	for _, bad := range []string{"", "[]", "{}", `{"process": 3}`} {
		if got, err := containerd.BaseSpec([]byte(bad), nil); err == nil {
			t.Errorf("%q became %s", bad, got)
		}
	}
}

func TestRenderBaseSpec(t *testing.T) {
	const existing = `version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.own]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "/own.json"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
`
	s := settings
	s.BaseSpec = "/base.json"
	got, err := containerd.Render([]byte(existing), s)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(got), "base_runtime_spec = '/base.json'"); n != 1 || !strings.Contains(string(got), "/own.json") {
		t.Errorf("not on runc alone, %d times:\n%s", n, got)
	}
}
