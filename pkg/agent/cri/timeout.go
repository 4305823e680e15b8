package cri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What a call gets beyond the time that it asks for itself. A runtime whose process was stopped accepts connections and never answers.
const (
	askTimeout = 15 * time.Second
	// diskTimeout is for calls that make or remove a container's snapshot and start its shim: a minute on a busy disk. The kubelet waits two.
	diskTimeout = time.Minute
	// networkTimeout is for calls in which CNI plugins run.
	networkTimeout = 90 * time.Second
)

// timeout is how long the runtime may take for a request.
func timeout(request any) time.Duration {
	switch r := request.(type) {
	case *runtimeapi.StopContainerRequest:
		return time.Duration(r.GetTimeout())*time.Second + askTimeout
	case *runtimeapi.ExecSyncRequest:
		return time.Duration(r.GetTimeout())*time.Second + askTimeout
	case *runtimeapi.CreateContainerRequest, *runtimeapi.StartContainerRequest, *runtimeapi.RemoveContainerRequest:
		return diskTimeout
	case *runtimeapi.RunPodSandboxRequest, *runtimeapi.StopPodSandboxRequest, *runtimeapi.RemovePodSandboxRequest:
		return networkTimeout
	}
	return askTimeout
}

// bounded gives up a call that the runtime does not answer in time, however long the caller would wait.
func bounded(limit func(request any) time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		most := limit(request)
		call, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		err := invoke(call, method, request, reply, conn, options...)
		// The server's own DeadlineExceeded may arrive before that of this side.
		if late := call.Err() != nil || status.Code(err) == codes.DeadlineExceeded; err != nil && late && ctx.Err() == nil {
			return status.Errorf(codes.DeadlineExceeded, "no answer within %s", most)
		}
		return err
	}
}
