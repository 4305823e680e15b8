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

// rehearsal runs a sandbox and a container on the new runtime and removes them, before the drain, which has time for all images.
func rehearsal(h *node.Host) engine.Step {
	const id = "rehearsal"
	return step[nothing]{
		id: id, title: "Rehearse: run a pod sandbox on containerd", record: recordNothing,
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if _, err := waitForCRI(ctx, h, found, cri.Report.Ready); err != nil {
				return err
			}
			if err := tryRegistries(ctx, h, found, report); err != nil {
				return err
			}
			options := smokeOptions(h, found, id, report)
			if len(found.PodLimits) > 0 {
				options.Look = func(p cri.Processes) { compareLimits(found, p, report) }
			}
			return runSmoke(ctx, h, found, options, createdFrom, report)
		},
	}
}

// smokeTest is the rehearsal once more while the kubelet is stopped, on the host's network: docker-pods has stopped the CNI's own pods, without
// whose agent many plugins (Cilium, AWS VPC CNI, Antrea and others) fail. The rehearsal has proved the pod network.
func smokeTest(h *node.Host) engine.Step {
	const id = "smoke-test"
	return step[nothing]{
		id: id, title: "Run a pod sandbox on the host's network while the kubelet is stopped", record: recordNothing,
		apply: func(ctx context.Context, _ nothing, report engine.Report) error {
			found, err := facts.Of(h)
			if err != nil {
				return err
			}
			if _, err := waitForCRI(ctx, h, found, runtimeReady); err != nil {
				return err
			}
			options := smokeOptions(h, found, id, report)
			options.HostNetwork = true
			return runSmoke(ctx, h, found, options, nil, report)
		},
	}
}

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
