package images_test

import (
	"slices"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

func TestImportFromAnEngine(t *testing.T) {
	engine := agenttest.StartEngine(t)
	id := engine.AddProgram("app:1")
	engine.Docker("tag", "app:1", "quay.io/x/app:2")
	dangling := engine.AddProgram("")
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := start(t, release)
			added, err := images.Import(t.Context(), d, n.client, []string{"app:1", dangling, "gone:1"}, nil, images.WithSnapshotter("native"))
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(added)
			want := []string{"docker.io/library/app:1", "quay.io/x/app:2", id, dangling}
			slices.Sort(want)
			if !slices.Equal(added, want) {
				t.Errorf("added %v, want %v", added, want)
			}
			for _, ref := range []string{"app:1", "quay.io/x/app:2", id, dangling} {
				n.expectCRI(t, ref, true)
			}
		})
	}
}
