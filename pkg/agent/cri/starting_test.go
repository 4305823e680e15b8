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

// starting is a runtime that answers like containerd in the moment between its socket and its CRI plugin, which cannot be hit on
// purpose with a real one.
type starting struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	answers []error
}

func (s *starting) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	if len(s.answers) == 0 {
		return &runtimeapi.VersionResponse{}, nil
	}
	err := s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	} else {
		s.answers = nil
	}
	return nil, err
}

func TestDialWaitsForStartingRuntime(t *testing.T) {
	for _, test := range []struct {
		name    string
		answers []error
		want    string
	}{
		{"not initialized yet", []error{errors.New("server is not initialized yet"), status.Error(codes.Unavailable, "starting")}, ""},
		{"CRI is off", []error{status.Error(codes.Unimplemented, "unknown service runtime.v1.RuntimeService")}, "unknown service"},
	} {
		t.Run(test.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			listener, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer()
			runtimeapi.RegisterRuntimeServiceServer(server, &starting{answers: test.answers})
			go func() { _ = server.Serve(listener) }()
			defer server.Stop()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			c, err := Dial(ctx, "unix://"+socket)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				_ = c.Close()
			} else if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
