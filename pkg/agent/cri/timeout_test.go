package cri

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestBounded(t *testing.T) {
	silent := func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	broken := errors.New("broken")
	for _, test := range []struct {
		name   string
		ctx    context.Context
		invoke grpc.UnaryInvoker
		code   codes.Code
		want   string
	}{
		{"no answer", t.Context(), silent, codes.DeadlineExceeded, "no answer within 10ms"},
		{"the caller gave up", ended, silent, codes.Canceled, "context canceled"},
		{"an error", t.Context(), func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return broken }, codes.Unknown, "broken"},
	} {
		err := bounded(func(any) time.Duration { return 10 * time.Millisecond })(test.ctx, "Version", nil, nil, nil, test.invoke)
		if status.Code(err) != test.code || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestTimeout: no call may outlast the cutover, and none gets less than what it asks the runtime to wait.
func TestTimeout(t *testing.T) {
	for request, want := range map[any]time.Duration{
		&runtimeapi.VersionRequest{}:                  15 * time.Second,
		&runtimeapi.StatusRequest{}:                   15 * time.Second,
		&runtimeapi.ListContainersRequest{}:           15 * time.Second,
		&runtimeapi.StopContainerRequest{Timeout: 30}: 45 * time.Second,
		&runtimeapi.ExecSyncRequest{Timeout: 10}:      25 * time.Second,
		&runtimeapi.StartContainerRequest{}:           time.Minute,
		&runtimeapi.RunPodSandboxRequest{}:            90 * time.Second,
		&runtimeapi.StopPodSandboxRequest{}:           90 * time.Second,
	} {
		if got := timeout(request); got != want {
			t.Errorf("%T: %s", request, got)
		}
	}
}

// silentRuntime answers Version, and nothing else ever.
type silentRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
}

func (silentRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{}, nil
}

func (silentRuntime) StopContainer(ctx context.Context, _ *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestDialBounds: a client's calls end by themselves. The one here asks for so little time that nothing of the bound is left.
func TestDialBounds(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, silentRuntime{})
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := Dial(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, err = c.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{Timeout: -int64(askTimeout / time.Second)})
	if err == nil || !strings.Contains(err.Error(), "no answer within 0s") {
		t.Errorf("got %v", err)
	}
}
