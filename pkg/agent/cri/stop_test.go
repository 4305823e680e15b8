package cri

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStopWaitsForTheExit: a runtime may answer before it has noted the exit.
func TestStopWaitsForTheExit(t *testing.T) {
	r := &lateExit{runs: 2}
	s := &smoke{Client: &Client{runtime: r}}
	if err := s.stop(t.Context()); err != nil || r.runs != 0 {
		t.Errorf("%v, %d more answers would have said that it runs", err, r.runs)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.runtime = &lateExit{runs: 1000}
	if err := s.stop(ctx); err == nil {
		t.Error("a container that runs has stopped")
	}
}

// lateExit says a few times that a container runs after it was stopped.
type lateExit struct {
	runtimeapi.RuntimeServiceClient
	runs int
}

func (r *lateExit) StopContainer(context.Context, *runtimeapi.StopContainerRequest, ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r *lateExit) ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest, ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	state := runtimeapi.ContainerState_CONTAINER_EXITED
	if r.runs > 0 {
		r.runs--
		state = runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{State: state}}, nil
}
