package desired

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
)

func TestRegistriesInUse(t *testing.T) {
	const d = "@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	images := []docker.Image{
		{ID: "sha256:a", RepoTags: []string{"busybox:1", "mirror.local/busybox:1"}, RepoDigests: []string{"busybox" + d, "mirror.local/busybox" + d}},
		{ID: "sha256:b", RepoTags: []string{"quay.io/x/y:2"}, RepoDigests: []string{"quay.io/x/y" + d}},
		{ID: "sha256:c", RepoDigests: []string{"10.0.0.1:5000/pinned" + d}},
		{ID: "sha256:d", RepoTags: []string{"lab.local/built:1"}},
		{ID: "sha256:e", RepoTags: []string{"gcr.io/unused:1"}, RepoDigests: []string{"gcr.io/unused" + d}},
		{ID: "sha256:f", RepoTags: []string{"registry.k8s.io/pause:3.6"}, RepoDigests: []string{"registry.k8s.io/pause" + d}},
		{ID: "sha256:g", RepoTags: []string{"ghcr.io/foreign:1"}, RepoDigests: []string{"ghcr.io/foreign" + d}},
		{ID: "sha256:h", RepoTags: []string{"quay.io/a/a:1"}, RepoDigests: []string{"quay.io/a/a" + d}},
	}
	pod := map[string]string{"io.kubernetes.docker.type": "container"}
	containers := []docker.Container{
		{ImageID: "sha256:a", Labels: pod}, {ImageID: "sha256:b", Labels: pod}, {ImageID: "sha256:b", Labels: pod}, {ImageID: "sha256:d", Labels: pod}, {ImageID: "sha256:g"},
	}
	got := RegistriesInUse(containers, []string{"registry.k8s.io/pause:3.6", "quay.io/a/a:1" + d, "10.0.0.1:5000/pinned" + d, "not there:1"}, images)
	want := []Registry{
		{"10.0.0.1:5000", "10.0.0.1:5000/pinned" + d, 1},
		{"docker.io", "docker.io/library/busybox:1", 1},
		{"mirror.local", "mirror.local/busybox:1", 1},
		{"quay.io", "quay.io/a/a:1", 2},
		{"registry.k8s.io", "registry.k8s.io/pause:3.6", 1},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Registry{})); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
