package images_test

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

// moment is after the n-th success of a call to containerd, of any call where there is no name.
type moment struct {
	call string
	n    int64
}

func (m moment) String() string { return fmt.Sprintf("%d %s", m.n, m.call) }

// interrupted connects to containerd and has do called at the moment. No call returns meanwhile that has succeeded since.
func interrupted(t *testing.T, n node, at moment, do func()) *client.Client {
	t.Helper()
	var calls atomic.Int64
	var once sync.Once
	hook := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoke(ctx, method, req, reply, conn, opts...)
		if err == nil && strings.HasSuffix(method, at.call) && calls.Add(1) >= at.n {
			once.Do(do)
		}
		return err
	}
	c, err := client.New(n.address, client.WithDefaultNamespace(containerd.Namespace), client.WithTimeout(3*time.Second),
		client.WithExtraDialOpts([]grpc.DialOption{grpc.WithChainUnaryInterceptor(hook)}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// leaveRemains makes a container of each image, as stopped pods leave them.
func leaveRemains(t *testing.T, n node, refs []string) {
	t.Helper()
	ctx, done, err := n.client.WithLease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = done(ctx) }()
	for _, ref := range refs {
		image, err := n.client.GetImage(ctx, "docker.io/library/"+ref)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := image.RootFS(ctx)
		if err != nil {
			t.Fatal(err)
		}
		id := "remains-" + layers[len(layers)-1].Encoded()
		if _, err := n.client.SnapshotService("overlayfs").Prepare(ctx, id, identity.ChainID(layers).String()); err != nil {
			t.Fatal(err)
		}
		_, err = n.client.ContainerService().Create(ctx, containers.Container{
			ID: id, Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"}, Snapshotter: "overlayfs", SnapshotKey: id,
			Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte("{}")},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// collect removes what leaveRemains made, and waits for the garbage collection after that. It may be called from any goroutine.
func collect(t *testing.T, n node) {
	list, err := n.client.ContainerService().List(t.Context())
	for _, container := range list {
		if err == nil {
			err = n.client.ContainerService().Delete(t.Context(), container.ID)
		}
	}
	if err == nil {
		err = images.Remove(t.Context(), n.client, nil)
	}
	if err != nil {
		t.Error(err)
	}
}

// expectWhole makes the root of a container of each image and looks for its files.
func expectWhole(t *testing.T, n node, refs []string) {
	t.Helper()
	for at, ref := range refs {
		mounted(t, n, "docker.io/library/"+ref, func(dir string) {
			for _, name := range []string{"base", fmt.Sprintf("own-%d", at)} {
				if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
					t.Errorf("%s: %v", ref, err)
				}
			}
		})
	}
}

// garbageRounds and garbageImages are those of TestGarbageIsNotThere. More of them are for a machine that has the time:
// GARBAGE_ROUNDS=50 GARBAGE_IMAGES=100.
const garbageRounds, garbageImages = 5, 20

func fromEnv(t *testing.T, name string, usual int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestGarbageIsNotThere adopts images whose layers containerd still has, as the parents of what is left of pods, and has them collected at
// the worst moments: each image is whole afterwards.
func TestGarbageIsNotThere(t *testing.T) {
	rounds, count := fromEnv(t, "GARBAGE_ROUNDS", garbageRounds), fromEnv(t, "GARBAGE_IMAGES", garbageImages)
	agenttest.InMemory(t)
	engine := agenttest.StartEngineOn(t, "overlay2")
	base := layerOf(t, []*tar.Header{{Typeflag: tar.TypeReg, Name: "base", Size: 9, Mode: 0o644}})
	refs, _ := loadOnBase(t, engine, "small", [][]byte{base}, count)
	d, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	moments := []moment{{"Snapshots/Stat", 1}, {"Snapshots/Stat", 5}, {"Leases/AddResource", 1}, {"Content/Info", 1}, {"Images/Create", 1}}
	random := rand.New(rand.NewPCG(1, 2)) // the same each time
	for len(moments) < rounds {
		moments = append(moments, moment{"", 1 + random.Int64N(int64(10*count))})
	}
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := startOverlay(t, release)
			adoptAll(t, n, d, engine.Root, refs...)
			for _, at := range moments[:rounds] {
				leaveRemains(t, n, refs)
				if err := images.Undo(t.Context(), n.client, "run", nil); err != nil {
					t.Fatal(err)
				}
				if snaps, _ := n.inventory(t); len(snaps) != 2*count+1 {
					t.Fatalf("the remains of pods keep %d snapshots, want %d", len(snaps), 2*count+1)
				}
				collected := false
				hooked := n
				hooked.client = interrupted(t, n, at, func() { collect(t, n); collected = true })
				adoptAll(t, hooked, d, engine.Root, refs...)
				collect(t, n)
				expectWhole(t, n, refs)
				if !collected {
					t.Errorf("nothing was collected at %s", at)
				}
				if t.Failed() {
					t.Fatalf("collected at %s", at)
				}
			}
		})
	}
}

// TestLostImageIsTold has an image removed by somebody else as soon as it is brought.
func TestLostImageIsTold(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			agenttest.InMemory(t)
			n, d := start(t, release), &agenttest.Docker{}
			d.Add(t, agenttest.OCI, []string{"app:1"}, nil, map[string][]byte{"a": []byte("one")})
			c := interrupted(t, n, moment{"Leases/Delete", 1}, func() {
				n.expectCRI(t, "app:1", true) // else CRI may make the record again that it has just seen
				if err := images.Remove(t.Context(), n.client, n.names(t)); err != nil {
					t.Error(err)
				}
			})
			if _, err := images.Import(t.Context(), d, c, []string{"app:1"}, nil, images.WithSnapshotter("native")); err == nil {
				t.Error("an image that is gone is taken for brought")
			}
		})
	}
}
