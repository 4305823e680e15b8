package images_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

var built = time.Date(2019, 3, 2, 1, 0, 0, 0, time.UTC)

// TestAdoptedIsWhatIsImported compares containers' files, for all that an image can hold.
func TestAdoptedIsWhatIsImported(t *testing.T) {
	engine := agenttest.StartEngineOn(t, "overlay2")
	id := load(t, engine, []string{"odd:1", "quay.io/x/odd:2"}, oddLayers(t))
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if adoptable := images.Adoptable(engine.Root, engine.Root, "overlayfs"); adoptable == nil || !adoptable(id) || adoptable("sha256:0") {
		t.Error("what can be adopted is not told")
	}
	if images.Adoptable(engine.Root, "/dev/shm", "overlayfs") != nil || images.Adoptable(engine.Root, engine.Root, "native") != nil {
		t.Error("another file system, or another snapshotter, is said to do")
	}
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			adopted, imported := startOverlay(t, release), startOverlay(t, release)
			before := agenttest.Describe(t, filepath.Join(engine.Root, "overlay2"))
			adoptAll(t, adopted, d, engine.Root, "odd:1")
			agenttest.Same(t, agenttest.Describe(t, filepath.Join(engine.Root, "overlay2")), before)
			if _, err := images.Import(t.Context(), d, imported.client, []string{"odd:1"}, nil); err != nil {
				t.Fatal(err)
			}
			for _, ref := range []string{"odd:1", "quay.io/x/odd:2", id} {
				adopted.expectCRI(t, ref, true)
			}
			got, want := rootfs(t, adopted, "docker.io/library/odd:1"), rootfs(t, imported, "docker.io/library/odd:1")
			if len(want) < 65 {
				t.Errorf("only %d files to compare", len(want))
			}
			agenttest.Same(t, got, want)
			if n := links(t, adopted, "docker.io/library/odd:1", "capable"); n != 2 {
				t.Errorf("a file has %d links: it was not adopted", n)
			}
			for _, table := range []string{"etc/crontab", "etc/cron.d/job"} {
				if n := links(t, adopted, "docker.io/library/odd:1", table); n != 1 {
					t.Errorf("%s has %d links, so that cron does not take it", table, n)
				}
			}
		})
	}
}

// TestAdoptedWithoutDocker removes Docker's data, and undoes.
func TestAdoptedWithoutDocker(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			engine := agenttest.StartEngineOn(t, "overlay2")
			layers := oddLayers(t)
			load(t, engine, []string{"odd:1"}, layers)
			other := load(t, engine, []string{"other:1"}, layers[:1])
			d, err := docker.Dial(engine.Socket)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = d.Close() }()
			n := startOverlay(t, release)
			adoptAll(t, n, d, engine.Root, "odd:1", "other:1")
			adoptAll(t, n, d, engine.Root, "odd:1", "other:1")
			before := rootfs(t, n, "docker.io/library/odd:1")
			engine.Docker("rmi", "odd:1", "other:1")
			if left, err := os.ReadDir(filepath.Join(engine.Root, "image/overlay2/layerdb/sha256")); err != nil || len(left) != 0 {
				t.Errorf("Docker still has %v (%v)", left, err)
			}
			for _, dir := range []string{"overlay2", "image"} {
				if err := os.RemoveAll(filepath.Join(engine.Root, dir)); err != nil {
					t.Fatal(err)
				}
			}
			agenttest.Same(t, rootfs(t, n, "docker.io/library/odd:1"), before)
			// The user gave one image another name since: it stays.
			image, err := n.client.ImageService().Get(t.Context(), "docker.io/library/other:1")
			if err != nil {
				t.Fatal(err)
			}
			image.Name, image.Labels = "docker.io/library/mine:1", nil
			if _, err := n.client.ImageService().Create(t.Context(), image); err != nil {
				t.Fatal(err)
			}
			n.expectCRI(t, other, true)
			if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
				t.Fatal(err)
			}
			n.expectCRI(t, "odd:1", false)
			if names := n.names(t); !slices.Equal(names, []string{"docker.io/library/mine:1", other}) {
				t.Errorf("left: %v", names)
			}
			if err := images.Remove(t.Context(), n.client, []string{"docker.io/library/mine:1", other}); err != nil {
				t.Fatal(err)
			}
			n.expectNothing(t)
		})
	}
}

func (n node) expectNothing(t *testing.T) {
	t.Helper()
	if names := n.names(t); len(names) != 0 {
		t.Errorf("records left: %v", names)
	}
	if err := n.client.SnapshotService("overlayfs").Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		t.Errorf("snapshot left: %s", info.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n.expectNoContent(t)
}

// kills is how often TestAdoptionKilled does it, for each containerd.
const kills = 50

// TestAdoptionKilled kills a process that adopts, at any time, and lets another one finish.
func TestAdoptionKilled(t *testing.T) {
	if socket := os.Getenv("ADOPT_DOCKER"); socket != "" {
		adoptInChild(t, socket)
		return
	}
	engine := agenttest.StartEngineOn(t, "overlay2")
	layers := oddLayers(t)
	load(t, engine, []string{"odd:1"}, layers)
	load(t, engine, []string{"other:1"}, layers[:2])
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := startOverlay(t, release)
			adoptAll(t, n, d, engine.Root, "odd:1", "other:1")
			want := rootfs(t, n, "docker.io/library/odd:1")
			snaps, blobs := n.inventory(t)
			undo := func() {
				t.Helper()
				if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
					t.Fatal(err)
				}
			}
			undo()
			took := startAdoption(t, engine, n.address).time(t)
			interrupted := 0
			for range kills {
				undo()
				took = startAdoption(t, engine, n.address).kill(took)
				if left, err := n.client.LeasesService().List(t.Context()); err != nil || len(left) > 0 {
					interrupted++
				}
				adoptAll(t, n, d, engine.Root, "odd:1", "other:1")
				gotSnaps, gotBlobs := n.inventory(t)
				if !slices.Equal(gotSnaps, snaps) || !slices.Equal(gotBlobs, blobs) {
					t.Fatalf("after a kill there are %v and %v, want %v and %v", gotSnaps, gotBlobs, snaps, blobs)
				}
			}
			t.Logf("%d of %d were killed at work", interrupted, kills)
			if interrupted < kills/5 {
				t.Error("too few were killed at work")
			}
			agenttest.Same(t, rootfs(t, n, "docker.io/library/odd:1"), want)
			startAdoption(t, engine, n.address).kill(took)
			undo()
			n.expectNothing(t)
		})
	}
}

func (n node) inventory(t *testing.T) (snaps, blobs []string) {
	t.Helper()
	if err := n.client.SnapshotService("overlayfs").Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		snaps = append(snaps, info.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := n.client.ContentStore().Walk(t.Context(), func(info content.Info) error {
		blobs = append(blobs, info.Digest.String())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(snaps)
	slices.Sort(blobs)
	return snaps, blobs
}

func startAdoption(t *testing.T, engine *agenttest.Engine, address string) child {
	t.Helper()
	return startChild(t, "TestAdoptionKilled", "ADOPT_DOCKER="+engine.Socket, "ADOPT_ROOT="+engine.Root, "ADOPT_CONTAINERD="+address)
}

// child is a process that works as a test of this program, with variables of its own.
type child struct{ cmd *exec.Cmd }

// working is the line that a child prints right before its work.
const working = "the child starts to work"

// startChild returns when the child starts to work, however long its start took.
func startChild(t *testing.T, test string, env ...string) child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^"+test+"$")
	// The race detector waits a second before it exits, which is no work.
	cmd.Env = append(append(os.Environ(), "GORACE=atexit_sleep_ms=0"), env...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == working {
			return child{cmd}
		}
	}
	t.Fatalf("the child did not start to work: %v", cmd.Wait())
	return child{}
}

// kill kills the child at a random moment within a time, unless it exits before. It returns that time, or less if the child needed less.
func (c child) kill(within time.Duration) time.Duration {
	start := time.Now()
	timer := time.AfterFunc(rand.N(within), func() { _ = c.cmd.Process.Kill() })
	if c.cmd.Wait() == nil {
		within = min(within, time.Since(start))
	}
	timer.Stop()
	time.Sleep(50 * time.Millisecond) // the agent's unit does not restart at once either, and containerd still does what it was asked for
	return within
}

// time returns how long the child works, undisturbed.
func (c child) time(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	if err := c.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

func adoptInChild(t *testing.T, socket string) {
	d, err := docker.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	c, err := containerd.Dial(os.Getenv("ADOPT_CONTAINERD"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(working)
	_, err = images.Import(t.Context(), d, c, []string{"odd:1", "other:1"}, nil, images.WithDockerRoot(os.Getenv("ADOPT_ROOT")), images.WithRun("run"))
	if err != nil {
		t.Fatal(err)
	}
}
