package images_test

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

const registryDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// node is a containerd with CRI.
type node struct {
	client  *client.Client
	cri     *cri.Client
	address string
	daemon  *agenttest.Daemon
}

func start(t *testing.T, release agenttest.Release) node {
	t.Helper()
	return startWith(t, release, "", containerd.Settings{Snapshotter: "native"})
}

// startWith starts a containerd with more lines in its config, and connects to it.
func startWith(t *testing.T, release agenttest.Release, more string, settings containerd.Settings) node {
	t.Helper()
	config, err := containerd.Render([]byte(agenttest.Isolated+more), settings)
	if err != nil {
		t.Fatal(err)
	}
	daemon := agenttest.Start(t, release, string(config), "")
	c, err := containerd.Dial(daemon.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := cri.Dial(ctx, daemon.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return node{client: c, cri: r, address: daemon.Address, daemon: daemon}
}

func (n node) names(t *testing.T) []string {
	t.Helper()
	list, err := n.client.ImageService().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, image := range list {
		names = append(names, image.Name)
	}
	slices.Sort(names)
	return names
}

// expectCRI waits until CRI finds ref, or no longer does: it learns of records by events.
func (n node) expectCRI(t *testing.T, ref string, want bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		got, err := n.cri.HasImage(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("CRI has %s: %v, want %v", ref, got, want)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func doImport(t *testing.T, n node, d *agenttest.Docker, refs ...string) []string {
	t.Helper()
	added, err := images.Import(t.Context(), d, n.client, refs, nil, images.WithSnapshotter("native"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(added)
	return added
}

func TestImport(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		for _, form := range []string{agenttest.Legacy, agenttest.OCI} {
			t.Run(release.Name+"/"+form, func(t *testing.T) {
				n, d := start(t, release), &agenttest.Docker{}
				same := map[string][]byte{"b": []byte("two")}
				image := d.Add(t, form, []string{"app:1", "quay.io/x/app:2"}, []string{"quay.io/x/app@" + registryDigest},
					map[string][]byte{"a": []byte("one")}, same, map[string][]byte{"c": []byte("three")}, same)
				nameless := d.Add(t, form, nil, nil, map[string][]byte{"z": []byte("dangling")})

				var reports []string
				added, err := images.Import(t.Context(), d, n.client, []string{"app:1", image.ID, "gone:1", nameless.ID}, func(done, total int64, ref string) {
					if total != 4 || done != int64(len(reports)+1) {
						t.Errorf("reported %d of %d", done, total)
					}
					reports = append(reports, ref)
				}, images.WithSnapshotter("native"))
				if err != nil {
					t.Fatal(err)
				}
				if len(reports) != 4 || !slices.Equal(d.Saved, []string{image.ID, nameless.ID}) {
					t.Errorf("reported %v, read %v from Docker", reports, d.Saved)
				}
				for _, ref := range []string{"app:1", "docker.io/library/app:1", "quay.io/x/app:2", "quay.io/x/app@" + registryDigest, "quay.io/x/app:2@" + registryDigest, image.ID, nameless.ID} {
					n.expectCRI(t, ref, true)
				}
				n.expectCRI(t, "app:2", false)
				slices.Sort(added)
				want := []string{"docker.io/library/app:1", "quay.io/x/app:2", "quay.io/x/app@" + registryDigest, image.ID, nameless.ID}
				slices.Sort(want)
				if !slices.Equal(added, want) || !slices.Equal(n.names(t), want) {
					t.Errorf("added %v, there are %v, want %v", added, n.names(t), want)
				}

				if again := doImport(t, n, d, "app:1", nameless.ID); len(again) != 0 || len(d.Saved) != 2 {
					t.Errorf("a second import added %v and read %v", again, d.Saved[2:])
				}
				if err := images.Remove(t.Context(), n.client, append(added, "gone:1")); err != nil {
					t.Fatal(err)
				}
				n.expectCRI(t, image.ID, false)
				if left := n.names(t); len(left) != 0 {
					t.Errorf("records left: %v", left)
				}
				n.expectNoContent(t)
			})
		}
	}
}

// expectNoContent checks that nothing keeps an image's blobs and snapshots, a forgotten lease for one.
func (n node) expectNoContent(t *testing.T) {
	t.Helper()
	var left []string
	if err := n.client.ContentStore().Walk(t.Context(), func(info content.Info) error {
		left = append(left, info.Digest.String())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.client.SnapshotService("native").Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		left = append(left, info.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(left) != 0 {
		t.Errorf("content left: %v", left)
	}
	leases, err := n.client.LeasesService().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(leases) != 0 {
		t.Errorf("leases left: %v", leases)
	}
}

func TestImportMovesAStaleTag(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n, old, current := start(t, release), &agenttest.Docker{}, &agenttest.Docker{}
			old.Add(t, agenttest.OCI, []string{"app:1"}, nil, map[string][]byte{"a": []byte("old")})
			image := current.Add(t, agenttest.OCI, []string{"app:1"}, nil, map[string][]byte{"a": []byte("new")})
			doImport(t, n, old, "app:1")
			if added := doImport(t, n, current, "app:1"); slices.Contains(added, "docker.io/library/app:1") {
				t.Errorf("the moved tag counts as added: %v", added)
			}
			record, err := n.client.GetImage(t.Context(), "docker.io/library/app:1")
			if err != nil {
				t.Fatal(err)
			}
			config, err := record.Config(t.Context())
			if err != nil || config.Digest.String() != image.ID {
				t.Errorf("app:1 is %s (%v), want %s", config.Digest, err, image.ID)
			}
		})
	}
}

func TestImportOfWhatDockerBroke(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		for _, form := range []string{agenttest.Legacy, agenttest.OCI} {
			t.Run(release.Name+"/"+form, func(t *testing.T) {
				n, d := start(t, release), &agenttest.Docker{}
				other := d.Add(t, form, nil, nil, map[string][]byte{"a": []byte("other")})
				image := d.Add(t, form, []string{"app:1"}, nil, map[string][]byte{"a": []byte("one")})
				for name, change := range map[string]func([]byte) []byte{
					"cut":       func(b []byte) []byte { return b[:len(b)/2] },
					"not a tar": func([]byte) []byte { return []byte(strings.Repeat(`{"message":"no space left on device"}`, 40)) },
					"empty":     func([]byte) []byte { return nil },
				} {
					d.Break(image.ID, change)
					added, err := images.Import(t.Context(), d, n.client, []string{"app:1"}, nil, images.WithSnapshotter("native"))
					if err == nil || len(added) != 0 || len(n.names(t)) != 0 {
						t.Errorf("%s: got %v, added %v, records %v", name, err, added, n.names(t))
					}
				}
				stream, err := d.Save(t.Context(), other.ID)
				if err != nil {
					t.Fatal(err)
				}
				saved, err := io.ReadAll(stream)
				if err != nil {
					t.Fatal(err)
				}
				d.Break(image.ID, func([]byte) []byte { return saved })
				added, err := images.Import(t.Context(), d, n.client, []string{"app:1"}, nil, images.WithSnapshotter("native"))
				if err == nil || !strings.Contains(err.Error(), other.ID) || len(added) != 0 {
					t.Errorf("another image's stream: got %v, added %v", err, added)
				}
			})
		}
	}
}

// otherPlatform has Docker say of all its images what they are for.
type otherPlatform struct {
	*agenttest.Docker
	platform string
}

func (d otherPlatform) Image(ctx context.Context, ref string) (docker.Image, error) {
	image, err := d.Docker.Image(ctx, ref)
	image.Platform = d.platform
	return image, err
}

// TestSkipped: an image for other nodes that cannot be brought does not keep the rest from coming; one for this node does.
func TestSkipped(t *testing.T) {
	release := agenttest.Releases(t)[0]
	for platform, want := range map[string]bool{"linux/s390x": true, "linux/" + runtime.GOARCH: false, "": false} {
		n, d := start(t, release), &agenttest.Docker{}
		broken := d.Add(t, agenttest.OCI, []string{"app:1"}, nil, map[string][]byte{"a": []byte("one")})
		d.Add(t, agenttest.OCI, []string{"app:2"}, nil, map[string][]byte{"a": []byte("two")})
		d.Break(broken.ID, func(b []byte) []byte { return b[:len(b)/2] })
		var skipped []string
		added, err := images.Import(t.Context(), otherPlatform{d, platform}, n.client, []string{"app:1", "app:2"}, nil, images.WithSnapshotter("native"),
			images.WithSkipped(func(ref string, err error) { skipped = append(skipped, fmt.Sprintf("%s: %t", ref, err != nil)) }))
		if want != (err == nil) || want != slices.Contains(added, "docker.io/library/app:2") || want != slices.Equal(skipped, []string{"app:1: true"}) {
			t.Errorf("%q: added %v, skipped %v: %v", platform, added, skipped, err)
		}
	}
}

func TestPin(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n, d := start(t, release), &agenttest.Docker{}
			d.Add(t, agenttest.OCI, []string{"pause:1", "other/pause:2"}, nil, map[string][]byte{"a": []byte("pause")})
			doImport(t, n, d, "pause:1")
			if err := images.Pin(t.Context(), n.client, "pause:1"); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"docker.io/library/pause:1", "docker.io/other/pause:2"} {
				image, err := n.client.ImageService().Get(t.Context(), name)
				if err != nil || image.Labels["io.cri-containerd.pinned"] != "pinned" {
					t.Errorf("%s: %v, %v", name, image.Labels, err)
				}
			}
			if err := images.Pin(t.Context(), n.client, "gone:1"); err == nil {
				t.Error("an image that is not there is pinned")
			}
		})
	}
}

func TestNeed(t *testing.T) {
	list := []docker.Image{{ID: "a", Size: 100}, {ID: "b", Size: 30}, {ID: "a", Size: 100}}
	if got := images.Need(list, nil); got != 260 {
		t.Errorf("Need is %d, want 260", got)
	}
	if got := images.Need(list, func(id string) bool { return id == "a" }); got != 62 {
		t.Errorf("Need with one to adopt is %d, want 62", got)
	}
	if got, rest := images.NeedTemporary(list, nil), images.NeedTemporary(list, func(id string) bool { return id == "a" }); got != 100 || rest != 30 {
		t.Errorf("NeedTemporary is %d, and without the largest one %d, want 100 and 30", got, rest)
	}
}
