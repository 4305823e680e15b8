package nodetest

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI is a runtime that can be made to stop answering, as a real one does whose process was stopped.
type CRI struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	Endpoint string

	mu sync.Mutex
	// hangs are the calls that get no answer until their caller gives up; "*" stands for all, fails those that fail.
	hangs, Fails map[string]bool
	containers   map[string]bool // running ones
	Stopped      func()          // called for each that is stopped; optional
	Sandboxes    []string        // IDs
}

func (f *CRI) answer(ctx context.Context, call string, do func()) error {
	f.mu.Lock()
	hangs, fails := f.hangs[call] || f.hangs["*"], f.Fails[call]
	f.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if fails {
		return status.Error(codes.Internal, call+" does not work")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	return nil
}

// Set has only these calls hang from now on.
func (f *CRI) Set(hangs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.hangs)
	for _, call := range hangs {
		f.hangs[call] = true
	}
}

// Version is the runtime's.
func (f *CRI) Version(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "containerd"}, f.answer(ctx, "Version", func() {})
}

// ListContainers is the runtime's.
func (f *CRI) ListContainers(ctx context.Context, _ *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	list := &runtimeapi.ListContainersResponse{}
	return list, f.answer(ctx, "ListContainers", func() {
		for id, running := range f.containers {
			if running {
				list.Containers = append(list.Containers, &runtimeapi.Container{Id: id})
			}
		}
	})
}

// StopContainer is the runtime's.
func (f *CRI) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return &runtimeapi.StopContainerResponse{}, f.answer(ctx, "StopContainer", func() {
		f.containers[r.GetContainerId()] = false
		if f.Stopped != nil {
			f.Stopped()
		}
	})
}

// ListPodSandbox is the runtime's.
func (f *CRI) ListPodSandbox(ctx context.Context, _ *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	list := &runtimeapi.ListPodSandboxResponse{}
	return list, f.answer(ctx, "ListPodSandbox", func() {
		for _, id := range f.Sandboxes {
			list.Items = append(list.Items, &runtimeapi.PodSandbox{Id: id})
		}
	})
}

// StartCRI runs one with these containers until the test ends.
func StartCRI(t *testing.T, containers ...string) *CRI {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "c")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	f := &CRI{Endpoint: "unix://" + socket, hangs: map[string]bool{}, Fails: map[string]bool{}, containers: map[string]bool{}}
	for _, id := range containers {
		f.containers[id] = true
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, f)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return f
}
