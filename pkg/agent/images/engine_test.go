package images_test

import (
	"archive/tar"
	"runtime"
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

// TestForeignArchitecture: an image of another architecture, which a registry's host keeps for others, comes along as it is, and keeps
// nothing else from coming.
func TestForeignArchitecture(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	for _, driver := range []string{"vfs", "overlay2"} {
		engine := agenttest.StartEngineOn(t, driver)
		layer := layerOf(t, []*tar.Header{{Typeflag: tar.TypeReg, Name: "program", Size: 5, Mode: 0o755}})
		foreign := loadFor(t, engine, other, []string{"app:other"}, [][]byte{layer})
		native := loadFor(t, engine, runtime.GOARCH, []string{"app:own"}, [][]byte{layer})
		d, err := docker.Dial(engine.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = d.Close() }()
		for _, release := range agenttest.Releases(t) {
			t.Run(driver+"/"+release.Name, func(t *testing.T) {
				n := startOverlay(t, release)
				never := func(id string, err error) { t.Errorf("%s was not adopted: %v", id, err) }
				var options []images.Option
				if driver == "overlay2" {
					options = append(options, images.WithDockerRoot(engine.Root), images.WithFallback(never))
				}
				refs := []string{"app:other", "app:own"}
				if _, err := images.Import(t.Context(), d, n.client, refs, nil, options...); err != nil {
					t.Fatal(err)
				}
				for _, ref := range []string{"app:other", foreign, "app:own", native} {
					n.expectCRI(t, ref, true)
				}
				if added, err := images.Import(t.Context(), d, n.client, refs, nil, options...); err != nil || len(added) > 0 {
					t.Errorf("a second import added %v: %v", added, err)
				}
				if driver == "overlay2" {
					if _, err := images.Verify(t.Context(), d, n.client, engine.Root, refs, func(int64, int64, string) {}); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}
