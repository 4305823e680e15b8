package steps

import (
	"context"
	"path/filepath"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
)

func smokeOptions(h *node.Host, found facts.Found, id string, report engine.Report) cri.SmokeOptions {
	return cri.SmokeOptions{
		SandboxImage: found.Facts.SandboxImage,
		Image:        h.Spec.Image,
		Command:      []string{"/runtime-agent", "sleep"},
		Exec:         []string{"/runtime-agent", "version"},
		CgroupDriver: found.Facts.CgroupDriver,
		Pod:          cri.Pod{Namespace: h.Spec.Pod.Namespace, Name: h.Spec.Pod.Name, UID: h.Spec.Pod.UID},
		LogDir:       filepath.Join(h.RunDir, id),
		Stage:        func(stage string) { report.Progress(stage, 0, 0, "") },
	}
}

// runSmoke runs the pod, with a container from each of the images too, if there are to be any.
func runSmoke(ctx context.Context, h *node.Host, found facts.Found, options cri.SmokeOptions,
	images func(context.Context, *node.Host, *cri.Client) ([]string, error), report engine.Report,
) error {
	return pods.WhileAnswering(ctx, h, found, func(ctx context.Context) error {
		dial, cancelDial := context.WithTimeout(ctx, time.Minute)
		defer cancelDial()
		return cri.With(dial, found.Facts.NewEndpoint, func(c *cri.Client) (err error) {
			if images != nil {
				if options.Images, err = images(ctx, h, c); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(ctx, 3*time.Minute+time.Duration(len(options.Images))*5*time.Second)
			defer cancel()
			if err := c.Smoke(ctx, options); err != nil {
				return &host.UnitError{Unit: node.ContainerdUnit, Err: err, Log: h.Systemd.Log(ctx, node.ContainerdUnit)}
			}
			report.Progress("a pod ran on containerd "+found.Facts.ContainerdVersion, 0, 0, "")
			return nil
		})
	})
}
