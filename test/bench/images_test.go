package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// layerSpec is a layer of files of random bytes, which do not compress.
type layerSpec struct{ files, size int }

// imageSet is what is brought at once. Images share those of their layers that are the same.
type imageSet struct {
	name   string
	images [][]layerSpec
}

func imageSets() []imageSet {
	small := layerSpec{files: 6000, size: 6 << 10}
	var sharing [][]layerSpec
	for n := range 20 {
		sharing = append(sharing, []layerSpec{{files: 1500, size: 40 << 10}, {files: 300, size: 60 << 10}, {files: 20 + n, size: 50 << 10}})
	}
	return []imageSet{
		{"few big files", [][]layerSpec{{{files: 4, size: 48 << 20}}, {{files: 2, size: 64 << 20}, {files: 3, size: 21 << 20}}}},
		{"many small files", [][]layerSpec{{small, {files: 6001, size: 6 << 10}}}},
		{"20 images that share layers", sharing},
	}
}

// tarLayer makes a layer's archive; the same specification makes the same one.
func tarLayer(t *testing.T, l layerSpec) []byte {
	t.Helper()
	source := rand.NewChaCha8(sha256.Sum256(fmt.Append(nil, l)))
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	data := make([]byte, l.size)
	for n := range l.files {
		if n%200 == 0 {
			write(t, w, &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("l%d/d%d/", l.files, n/200), Mode: 0o755}, nil)
		}
		_, _ = source.Read(data)
		write(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("l%d/d%d/f%d", l.files, n/200, n), Mode: 0o644, Size: int64(l.size)}, data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func write(t *testing.T, w *tar.Writer, header *tar.Header, data []byte) {
	t.Helper()
	if err := w.WriteHeader(header); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
}

// archive writes what `docker load` takes, and returns the images' names and the size of their layers.
func archive(t *testing.T, path, prefix string, set imageSet) (names []string, size int64) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	w := tar.NewWriter(file)
	digests := map[layerSpec]string{}
	var manifest []map[string]any
	for n, layers := range set.images {
		var ids, paths []string
		for _, l := range layers {
			if digests[l] == "" {
				data := tarLayer(t, l)
				sum := sha256.Sum256(data)
				digests[l] = hex.EncodeToString(sum[:])
				size += int64(len(data))
				write(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: digests[l] + "/layer.tar", Mode: 0o644, Size: int64(len(data))}, data)
			}
			ids, paths = append(ids, "sha256:"+digests[l]), append(paths, digests[l]+"/layer.tar")
		}
		config, err := json.Marshal(map[string]any{
			"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Cmd": []string{"/none", prefix, strconv.Itoa(n)}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
		})
		if err != nil {
			t.Fatal(err)
		}
		write(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d.json", n), Mode: 0o644, Size: int64(len(config))}, config)
		name := fmt.Sprintf("lab.local/%s-%d:1", prefix, n)
		names = append(names, name)
		manifest = append(manifest, map[string]any{"Config": fmt.Sprintf("%d.json", n), "RepoTags": []string{name}, "Layers": paths})
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "manifest.json", Mode: 0o644, Size: int64(len(data))}, data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return names, size
}

// TestImages compares four ways to bring the same images from a node's Docker to its containerd.
func TestImages(t *testing.T) {
	count := runs(t)
	needRoot(t)
	l, err := lab.Up(t.Context(), lab.Options{Profile: lab.Dockershim, Nodes: 1, Packages: []string{"skopeo"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	n := &imageNode{t: t, lab: l, registry: l.Registries()[0].Address}
	adopter := filepath.Join(l.Root("node-1"), "usr/local/bin/bench-adopt")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", adopter, "./adopt")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the adopter: %v\n%s", err, out)
	}
	var busy loads
	var table strings.Builder
	table.WriteString("| images | way | time | extra disk | of the images' size | slower than adoption |\n|---|---|---|---|---|---|\n")
	for number, set := range imageSets() {
		n.measure(set, fmt.Sprintf("set%d", number), count, &busy, &table)
	}
	record(t, "images", busy.over(count)+" The page cache was warm.\n\n"+table.String())
}

type imageNode struct {
	t        *testing.T
	lab      *lab.Lab
	registry string
}

func (n *imageNode) sh(line string) string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 10*time.Minute)
	defer cancel()
	out, err := n.lab.Exec(ctx, "node-1", "sh", "-ec", line)
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// used is what Docker and containerd take on the disk, a file with several names once.
func (n *imageNode) used() int64 {
	n.t.Helper()
	fields := strings.Fields(n.sh("sync; du -sxk --total /var/lib/docker/overlay2 /var/lib/docker/image /var/lib/containerd | tail -n1"))
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		n.t.Fatal(err)
	}
	return kib << 10
}

// bySkopeo is the line that brings images with skopeo, which has no way into containerd but for an archive. All go through one layout, which
// holds each layer once, and layers stay uncompressed: that is the fastest it can do. ctr takes the layout as a stream.
func bySkopeo(names []string) string {
	const layout = "/var/tmp/layout"
	copies := make([]string, 0, len(names))
	for _, name := range names {
		copies = append(copies, "skopeo copy -q --insecure-policy --dest-oci-accept-uncompressed-layers docker-daemon:"+name+" oci:"+layout+":"+name)
	}
	return strings.Join(copies, " && ") + " && tar -C " + layout + " -c . | ctr -n k8s.io images import - >/dev/null && rm -r " + layout
}

func (n *imageNode) measure(set imageSet, prefix string, count int, busy *loads, table *strings.Builder) {
	names, size := archive(n.t, filepath.Join(n.lab.Root("node-1"), "var/tmp", prefix+".tar"), prefix, set)
	n.sh("docker load -q -i /var/tmp/" + prefix + ".tar && rm /var/tmp/" + prefix + ".tar")
	var pull []string
	for _, name := range names {
		pushed, err := n.lab.PushImage(n.t.Context(), "node-1", name)
		if err != nil {
			n.t.Fatal(err)
		}
		pull = append(pull, "ctr -n k8s.io images pull --plain-http "+n.registry+"/"+pushed+" >/dev/null")
	}
	all := strings.Join(names, " ")
	ways := []struct{ name, line string }{
		{"adoption", "bench-adopt " + all},
		{"docker save, ctr images import", "docker save " + all + " | ctr -n k8s.io images import - >/dev/null"},
		{"skopeo copy to an OCI layout, ctr images import", bySkopeo(names)},
		{"pulled again from the registry", strings.Join(pull, " && ")},
	}
	times, disk := make([][]time.Duration, len(ways)), make([][]int64, len(ways))
	for range count {
		busy.note()
		for way, w := range ways {
			before := n.used()
			began := time.Now()
			n.sh(w.line)
			times[way] = append(times[way], time.Since(began))
			disk[way] = append(disk[way], n.used()-before)
			n.sh("ctr -n k8s.io images ls -q | grep -E '" + prefix + "-|^sha256:' | xargs -r ctr -n k8s.io images rm --sync >/dev/null")
		}
	}
	for way, w := range ways {
		fmt.Fprintf(table, "| %s (%s) | %s | %s | %s | %.1f %% | %.1f × |\n", set.name, mebibytes(size), w.name, span(times[way]), mebibytes(median(disk[way])),
			100*float64(median(disk[way]))/float64(size), median(times[way]).Seconds()/median(times[0]).Seconds())
	}
	n.sh("docker rmi -f " + all + " >/dev/null")
}
