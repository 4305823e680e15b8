package steps

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestList pins what journals hold: an ID that changes can no longer be undone by a newer agent.
func TestList(t *testing.T) {
	want := map[protocol.Phase]string{
		protocol.PhasePrepare: "inspect containerd-install containerd-config containerd-service images rehearsal",
		protocol.PhaseCutover: "kubelet-stop docker-pods docker-stop node-sysctls kubelet-config smoke-test kubelet-start node-ready",
		protocol.PhaseVerify:  "verify",
	}
	for phase, list := range List(&node.Host{}) {
		var ids []string
		for _, s := range list {
			ids = append(ids, s.ID())
			if s.Title() == "" {
				t.Errorf("%s has no title", s.ID())
			}
		}
		if got := strings.Join(ids, " "); got != want[phase] {
			t.Errorf("%s: %s", phase, got)
		}
	}
}

func TestImageRefs(t *testing.T) {
	pod := map[string]string{"io.kubernetes.docker.type": "container"}
	containers := []docker.Container{
		{Image: "b:1", Labels: pod},
		{Image: "sha256:abc", ImageID: "sha256:abc", Labels: pod},
		{Image: "foreign:1"},
		{Image: "sha256:def", ImageID: "sha256:def", Labels: pod},
	}
	have := []docker.Image{
		{ID: "sha256:abc", RepoDigests: []string{"x@sha256:1"}},
		{ID: "sha256:def", RepoTags: []string{"a:1", "a:2"}},
		{ID: "sha256:123", RepoTags: []string{"unused:1"}},
	}
	for set, want := range map[string][]string{
		"":                  {"a:1", "agent:1", "b:1", "pause:3.6", "sha256:abc"},
		protocol.ImagesUsed: {"a:1", "agent:1", "b:1", "pause:3.6", "sha256:abc"},
		protocol.ImagesAll:  {"a:1", "agent:1", "b:1", "pause:3.6", "sha256:abc", "unused:1"},
		protocol.ImagesNone: {"agent:1", "pause:3.6"},
	} {
		h := &node.Host{Spec: protocol.Spec{Image: "agent:1", Images: []string{"a:1", "b:1", ""}, ImageSet: set}}
		if got := imageRefs(h, containers, have, "pause:3.6"); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", set, got, want)
		}
	}
}

func TestKeepFor(t *testing.T) {
	for _, test := range []struct {
		name             string
		set              map[string]string
		sysctls, modules []string
	}{
		{"all", map[string]string{facts.WantedSysctls[0]: "1", facts.WantedSysctls[1]: "1", facts.WantedSysctls[2]: "1", facts.WantedSysctls[3]: "1"}, facts.WantedSysctls, []string{"overlay", "br_netfilter"}},
		{"no bridge module", map[string]string{facts.WantedSysctls[0]: "1"}, facts.WantedSysctls[:1], []string{"overlay"}},
		{"off stays off", map[string]string{facts.WantedSysctls[0]: "0", facts.WantedSysctls[1]: "0"}, nil, []string{"overlay", "br_netfilter"}},
	} {
		sysctls, modules := kernelFiles(facts.ReadKernel(func(name string) (string, bool) { value, ok := test.set[name]; return value, ok }))
		var want string
		for _, name := range test.sysctls {
			want += name + " = 1\n"
		}
		if _, got, _ := strings.Cut(string(sysctls), "\n"); got != want {
			t.Errorf("%s: %q", test.name, sysctls)
		}
		if _, got, _ := strings.Cut(string(modules), "\n"); got != strings.Join(test.modules, "\n")+"\n" {
			t.Errorf("%s: %q", test.name, modules)
		}
	}
}

func TestRemoveDockerLogLinks(t *testing.T) {
	dir := t.TempDir()
	logs := filepath.Join(dir, "ns_pod_uid", "app")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/var/lib/docker/containers/x/x-json.log", filepath.Join(logs, "0.log")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(logs, "1.log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeDockerLogLinks(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(logs)
	if err != nil || len(left) != 1 || left[0].Name() != "1.log" {
		t.Errorf("%v %v", left, err)
	}
}
