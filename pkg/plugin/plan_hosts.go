package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/assess"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/render"
)

// looksAtOnce bounds the nodes whose hosts are looked at at a time: each has a Job, a pod and a stream of its log.
const looksAtOnce = 16

// hostLook is what came of the look at one host. Neither plan nor err: it was not looked at, for the reason.
type hostLook struct {
	plan   *nodeswitch.HostPlan
	err    error
	reason string
}

func (l hostLook) note() string {
	if l.err != nil {
		return l.err.Error()
	}
	return l.reason
}

// hostLooks are those at the nodes that are on Docker, by name.
type hostLooks map[string]hostLook

// all reports whether every host was looked at, and there was one.
func (h hostLooks) all() bool {
	for _, look := range h {
		if look.plan == nil {
			return false
		}
	}
	return len(h) > 0
}

func (h hostLooks) errors() []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if err := h[name].err; err != nil {
			all = append(all, err.Error())
		}
	}
	return all
}

// failure is one error for all hosts that could not be looked at, nil if there is none.
func (h hostLooks) failure() error {
	failed := h.errors()
	if len(failed) == 0 {
		return nil
	}
	hint := "nothing was changed; --api-only does without a look at the hosts"
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if cure := nodeswitch.Hint(h[name].err); cure != "" {
			hint = cure + "; " + hint
			break
		}
	}
	return cli.Exitf(cli.ExitGeneral, "%s", strings.Join(failed, "\n")).WithHint("%s", hint)
}

// passedOver says why no Job is sent to a node; empty if one is.
func passedOver(node *corev1.Node) string {
	row := inventory.FromNode(node)
	switch {
	case inventory.Refusal(node).ID != inventory.AdviceNone:
		return "the node cannot be switched in place"
	case row.Switch == nodestate.StateCutover || row.Switch == nodestate.StateVerifying || row.Switch == nodestate.StateRollingBack:
		return fmt.Sprintf("a run is %s there", row.Switch)
	case row.BadRun:
		return inventory.BadRun
	case row.Switch == nodestate.StateBroken:
		return "an earlier run has left it broken"
	case row.Ready != corev1.ConditionTrue:
		return "the node is not Ready"
	}
	return ""
}

// lookAtHosts has agents look at the hosts of the nodes that are on Docker. What fails on one is in its look; the error is for what
// keeps all from being looked at.
func (o *PlanOptions) lookAtHosts(ctx context.Context, nodes []corev1.Node) (hostLooks, error) {
	looks := hostLooks{}
	var names []string
	for i := range nodes {
		if !assess.OnDocker(&nodes[i]) {
			continue
		}
		reason := passedOver(&nodes[i])
		looks[nodes[i].Name] = hostLook{reason: reason}
		if reason == "" {
			names = append(names, nodes[i].Name)
		}
	}
	if len(names) == 0 {
		return looks, nil
	}
	errOut := o.factory.Streams.ErrOut
	progress := render.NewProgress(errOut, render.DetectStyle(errOut, os.Getenv), o.factory.Clock)
	defer progress.Close()
	r := nodeswitch.New(nodeswitch.Config{
		Client: o.client, REST: o.config, Clock: o.factory.Clock, Observer: progress, Options: o.rollout, Holder: holder(),
	})
	if err := (access.Checker{Client: o.client}).CheckLook(ctx); err != nil {
		var missing *access.PermissionError
		if errors.As(err, &missing) {
			return nil, cli.Exitf(cli.ExitGeneral, "look at the hosts: %w", err).WithHint("--api-only does without a look at the hosts, and needs none of these")
		}
		return nil, o.factory.Explain("check", "permissions", "", err)
	}
	unused, err := (access.Checker{Client: o.client}).MissingForLook(ctx)
	if err != nil {
		return nil, o.factory.Explain("check", "permissions", "", err)
	}
	o.factory.WarnMissing("plan", unused)
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(looksAtOnce)
	for _, name := range names {
		group.Go(func() error {
			var look hostLook
			look.plan, look.err = r.LookAtHost(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			looks[name] = look
			return nil
		})
	}
	_ = group.Wait() // what fails is in the looks
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return looks, nil
}
