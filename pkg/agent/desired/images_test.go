package desired

import (
	"slices"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

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
		if got := Images(h, containers, have, "pause:3.6"); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", set, got, want)
		}
	}
}
