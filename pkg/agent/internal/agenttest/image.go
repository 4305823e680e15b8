package agenttest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
)

// Program builds the static program of the test images.
func Program(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-o", path, "github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest/program")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test image's program: %v\n%s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The forms of what engines save.
const (
	Legacy = "docker-archive"      // up to 24
	OCI    = "OCI with a manifest" // from 25 on
)

// Docker stands for an engine that has the images given to Add; a real one runs only in the lab's nodes.
type Docker struct {
	images   []docker.Image
	archives map[string][]byte
	// Saved are the IDs that were asked for, in order.
	Saved []string
}

// Image finds an image by ID, tag or digest, spelt as they were added.
func (d *Docker) Image(_ context.Context, ref string) (docker.Image, error) {
	for _, image := range d.images {
		for _, name := range append(append([]string{image.ID}, image.RepoTags...), image.RepoDigests...) {
			if name == ref {
				return image, nil
			}
		}
	}
	return docker.Image{}, fmt.Errorf("no such image: %s: %w", ref, errdefs.ErrNotFound)
}

// Save streams what Add built.
func (d *Docker) Save(_ context.Context, ref string) (io.ReadCloser, error) {
	d.Saved = append(d.Saved, ref)
	data, ok := d.archives[ref]
	if !ok {
		return nil, fmt.Errorf("no such image: %s: %w", ref, errdefs.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// Break replaces what Save streams for an image.
func (d *Docker) Break(id string, change func([]byte) []byte) {
	d.archives[id] = change(d.archives[id])
}

// Add makes an image of one layer for each map of paths to contents, as an engine saves it by ID: without names.
func (d *Docker) Add(t *testing.T, form string, tags, digests []string, layers ...map[string][]byte) docker.Image {
	t.Helper()
	var blobs [][]byte
	var diffIDs []string
	var size int64
	for _, files := range layers {
		blob := tarOf(t, files)
		blobs, diffIDs, size = append(blobs, blob), append(diffIDs, sha(blob)), size+int64(len(blob))
	}
	config := marshal(t, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Entrypoint": []string{"/program", "sleep"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	image := docker.Image{ID: sha(config), RepoTags: tags, RepoDigests: digests, Size: size}
	d.images = append(d.images, image)
	if d.archives == nil {
		d.archives = map[string][]byte{}
	}
	if form == Legacy {
		d.archives[image.ID] = legacyArchive(t, config, blobs)
	} else {
		d.archives[image.ID] = ociArchive(t, config, blobs)
	}
	return image
}

// legacyArchive has the directories, and for a layer that comes again the symlink, that image/tarexport/save.go of Docker 20.10
// writes.
func legacyArchive(t *testing.T, config []byte, layers [][]byte) []byte {
	t.Helper()
	var paths []string
	archive := newArchive(t)
	first := map[string]string{}
	for n, layer := range layers {
		dir := hex.EncodeToString(sum(fmt.Appendf(nil, "%d %s", n, sha(layer))))
		archive.add(dir+"/VERSION", []byte("1.0"))
		archive.add(dir+"/json", []byte("{}"))
		path := dir + "/layer.tar"
		if there, ok := first[sha(layer)]; ok {
			archive.link(path, "../"+there)
		} else {
			archive.add(path, layer)
			first[sha(layer)] = path
		}
		paths = append(paths, path)
	}
	name := hex.EncodeToString(sum(config)) + ".json"
	archive.add(name, config)
	archive.add("manifest.json", marshal(t, []any{map[string]any{"Config": name, "RepoTags": nil, "Layers": paths}}))
	return archive.close()
}

func ociArchive(t *testing.T, config []byte, layers [][]byte) []byte {
	t.Helper()
	archive := newArchive(t)
	descriptor := func(mediaType string, blob []byte) map[string]any {
		archive.add("blobs/sha256/"+hex.EncodeToString(sum(blob)), blob)
		return map[string]any{"mediaType": mediaType, "digest": sha(blob), "size": len(blob)}
	}
	var descriptors []any
	var paths []string
	for _, layer := range layers {
		descriptors = append(descriptors, descriptor("application/vnd.oci.image.layer.v1.tar", layer))
		paths = append(paths, "blobs/sha256/"+hex.EncodeToString(sum(layer)))
	}
	manifest := marshal(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": descriptor("application/vnd.oci.image.config.v1+json", config), "layers": descriptors,
	})
	archive.add("index.json", marshal(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
		"manifests": []any{descriptor("application/vnd.oci.image.manifest.v1+json", manifest)},
	}))
	archive.add("manifest.json", marshal(t, []any{map[string]any{
		"Config": "blobs/sha256/" + hex.EncodeToString(sum(config)), "RepoTags": nil, "Layers": paths,
	}}))
	archive.add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return archive.close()
}

type archive struct {
	t      *testing.T
	buffer bytes.Buffer
	writer *tar.Writer
}

func newArchive(t *testing.T) *archive {
	a := &archive{t: t}
	a.writer = tar.NewWriter(&a.buffer)
	return a
}

func (a *archive) add(name string, content []byte) {
	a.t.Helper()
	if err := a.writer.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o755}); err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.writer.Write(content); err != nil {
		a.t.Fatal(err)
	}
}

func (a *archive) link(name, target string) {
	a.t.Helper()
	if err := a.writer.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}); err != nil {
		a.t.Fatal(err)
	}
}

func (a *archive) close() []byte {
	a.t.Helper()
	if err := a.writer.Close(); err != nil {
		a.t.Fatal(err)
	}
	return a.buffer.Bytes()
}

func tarOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	a := newArchive(t)
	for name, content := range files {
		a.add(name, content)
	}
	return a.close()
}

func marshal(t *testing.T, value any) []byte {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func sum(data []byte) []byte {
	s := sha256.Sum256(data)
	return s[:]
}

func sha(data []byte) string { return "sha256:" + hex.EncodeToString(sum(data)) }
