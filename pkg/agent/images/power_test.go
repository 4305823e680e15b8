package images_test

import (
	"archive/tar"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// manyFiles is a layer of so many files with content, in directories below dir.
func manyFiles(t *testing.T, dir string, count int) []byte {
	t.Helper()
	var headers []*tar.Header
	for n := range count {
		if n%20 == 0 {
			headers = append(headers, &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("%s-%d/", dir, n/20), Mode: 0o755})
		}
		headers = append(headers, &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s-%d/file-%d", dir, n/20, n), Size: int64(5000 + n), Mode: 0o644})
	}
	return layerOf(t, headers)
}

// TestPowerFailsAfterImport compares the files of all snapshots with those that would be left had the power failed right after the import:
// of images that were adopted, and of images that were streamed, right after Docker had unpacked them.
func TestPowerFailsAfterImport(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		for _, journal := range []bool{true, false} {
			for _, way := range []string{"adopted", "streamed"} {
				t.Run(fmt.Sprintf("%s/journal %t/%s", release.Name, journal, way), func(t *testing.T) {
					disk := agenttest.NewDisk(t, journal)
					t.Setenv("TMPDIR", disk.Dir) // where the daemons keep everything
					engine := agenttest.StartEngineOn(t, "overlay2")
					n := startOverlay(t, release)
					load(t, engine, []string{"many:1"}, [][]byte{manyFiles(t, "lower", 400), manyFiles(t, "upper", 100)})
					d, err := docker.Dial(engine.Socket)
					if err != nil {
						t.Fatal(err)
					}
					defer func() { _ = d.Close() }()
					root := filepath.Join(n.daemon.Dir, "root")
					options := []images.Option{images.WithRoot(images.Space{Dir: root})}
					if way == "adopted" {
						options = append(options, images.WithDockerRoot(engine.Root))
					}
					if _, err := images.Import(t.Context(), d, n.client, []string{"many:1"}, nil, options...); err != nil {
						t.Fatal(err)
					}
					left := disk.AfterPowerFailed()
					snapshots := filepath.Join(root, "io.containerd.snapshotter.v1.overlayfs/snapshots")
					want := agenttest.Describe(t, snapshots)
					if len(want) < 500 {
						t.Errorf("only %d files to compare", len(want))
					}
					agenttest.Same(t, agenttest.Describe(t, filepath.Join(left, strings.TrimPrefix(snapshots, disk.Dir))), want)
				})
			}
		}
	}
}
