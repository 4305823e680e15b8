package cri

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStopAllInOrder: what CNI DEL may need, on the host's network, goes only after all of those with a network of their own.
func TestStopAllInOrder(t *testing.T) {
	for _, mute := range []bool{false, true} {
		r := &ordered{mute: mute}
		if err := (&Client{runtime: r}).StopAll(t.Context(), time.Second, time.Minute); err != nil {
			t.Error(err)
		}
		want := []string{"container of web", "sandbox web", "container of cilium", "sandbox cilium"}
		if mute { // all containers first, as far as it is known
			want = []string{"container of cilium", "container of web", "sandbox cilium", "sandbox web"}
			slices.Sort(r.stopped[:2])
			slices.Sort(r.stopped[2:])
		}
		if !slices.Equal(r.stopped, want) {
			t.Errorf("mute %t: %s", mute, strings.Join(r.stopped, ", "))
		}
	}
}

// TestStopAllWithoutDetach: a CNI DEL that never ends keeps nothing else from being stopped.
func TestStopAllWithoutDetach(t *testing.T) {
	r := &ordered{stuck: "web"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := (&Client{runtime: r}).StopAll(ctx, time.Second, 100*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "StopPodSandbox web (") || ctx.Err() != nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
	if want := []string{"container of web", "container of cilium", "sandbox cilium"}; !slices.Equal(r.stopped, want) {
		t.Errorf("stopped: %s", strings.Join(r.stopped, ", "))
	}
}

func TestJoinSome(t *testing.T) {
	errs := []error{nil, errors.New("a"), nil, errors.New("b"), errors.New("c"), errors.New("d"), errors.New("e")}
	if err := JoinSome(errs); err == nil || err.Error() != "a\nb\nc\nand 2 more" {
		t.Errorf("%v", err)
	}
	if err := JoinSome(errs[:3]); err == nil || err.Error() != "a" {
		t.Errorf("%v", err)
	}
	if err := JoinSome(errs[:1]); err != nil {
		t.Errorf("%v", err)
	}
}

// ordered runs two pods, the network's agent first, and notes what is stopped.
type ordered struct {
	runtimeapi.RuntimeServiceClient
	stuck string // the sandbox whose stop does not end
	mute  bool   // it does not tell a sandbox's status

	mu      sync.Mutex
	stopped []string
}

func (r *ordered) ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{
		{Id: "cilium", PodSandboxId: "cilium"}, {Id: "web", PodSandboxId: "web"},
	}}, nil
}

func (r *ordered) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: "cilium"}, {Id: "web"}}}, nil
}

func (r *ordered) PodSandboxStatus(_ context.Context, q *runtimeapi.PodSandboxStatusRequest, _ ...grpc.CallOption) (*runtimeapi.PodSandboxStatusResponse, error) {
	if r.mute {
		return nil, status.Error(codes.Unimplemented, "no")
	}
	network := map[string]runtimeapi.NamespaceMode{"cilium": runtimeapi.NamespaceMode_NODE}[q.PodSandboxId] // POD is 0
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{Network: network}}},
	}}, nil
}

func (r *ordered) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = append(r.stopped, what)
}

func (r *ordered) StopContainer(_ context.Context, q *runtimeapi.StopContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	r.note("container of " + q.ContainerId)
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r *ordered) StopPodSandbox(ctx context.Context, q *runtimeapi.StopPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	if q.PodSandboxId == r.stuck {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	r.note("sandbox " + q.PodSandboxId)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// TestRemoveStopped leaves what runs, and what no kubelet made.
func TestRemoveStopped(t *testing.T) {
	const gone = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	label := map[string]string{kubeletLabel: "u"}
	r := &remains{sandboxes: []*runtimeapi.PodSandbox{
		{Id: "runs", Labels: label},
		{Id: "stopped", State: gone, Labels: label},
		{Id: "someone's", State: gone},
		{Id: "removed meanwhile", State: gone, Labels: label},
	}}
	count, err := (&Client{runtime: r}).RemoveStopped(t.Context())
	slices.Sort(r.removed)
	if err != nil || count != 2 || strings.Join(r.removed, ", ") != "removed meanwhile, stopped" {
		t.Errorf("%d, %v: %s", count, err, strings.Join(r.removed, ", "))
	}
}

// remains are sandboxes of which one can be removed.
type remains struct {
	runtimeapi.RuntimeServiceClient
	sandboxes []*runtimeapi.PodSandbox

	mu      sync.Mutex
	removed []string
}

func (r *remains) ListPodSandbox(_ context.Context, q *runtimeapi.ListPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	var answer runtimeapi.ListPodSandboxResponse
	for _, sandbox := range r.sandboxes {
		if sandbox.State == q.Filter.State.State {
			answer.Items = append(answer.Items, sandbox)
		}
	}
	return &answer, nil
}

func (r *remains) RemovePodSandbox(_ context.Context, q *runtimeapi.RemovePodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = append(r.removed, q.PodSandboxId)
	if q.PodSandboxId == "removed meanwhile" {
		return nil, status.Error(codes.NotFound, "gone")
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}
