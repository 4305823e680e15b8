// Command adopt brings images from this node's Docker to its containerd as the agent's step images does, and nothing else. The
// benchmark of package bench runs it on a lab node, beside what it is compared with.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
)

func main() {
	if err := adopt(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func adopt(ctx context.Context, refs []string) error {
	d, err := docker.Dial("")
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	info, err := d.Info(ctx)
	if err != nil {
		return err
	}
	c, err := containerd.Dial("")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	var streamed error
	_, err = images.Import(ctx, d, c, refs, nil, images.WithDockerRoot(info.Root), images.WithFallback(func(image string, err error) {
		streamed = fmt.Errorf("image %s was not adopted: %w", image, err)
	}))
	if err == nil {
		err = streamed
	}
	return err
}
