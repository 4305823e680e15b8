package nodeswitch

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

const (
	// apiPatience is how long a request is tried again that has to succeed for a node not to be left as it is.
	apiPatience = time.Minute
	// pollInterval is the pause before a request is tried again.
	pollInterval = 500 * time.Millisecond
)

// getNode reads a node, and tries again while the server is away.
func (r *Switcher) getNode(ctx context.Context, name string) (*corev1.Node, error) {
	var node *corev1.Node
	err := r.retry(ctx, func() (err error) {
		node, err = r.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", name, err)
	}
	return node, nil
}

// nodeSeen is the node as it is watched.
func (s *session) nodeSeen(ctx context.Context) (*corev1.Node, error) {
	var node *corev1.Node
	err := s.retry(ctx, func() (err error) {
		node, err = s.watch.Node(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", s.name, err)
	}
	return node, nil
}

// retry calls request until it succeeds, fails for good, or the server has been away for too long.
func (r *Switcher) retry(ctx context.Context, request func() error) error {
	deadline := r.clock.Now().Add(apiPatience)
	for {
		err := request()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, claim.ErrLost), !nodejob.IsTransient(err), r.clock.Now().After(deadline):
			return err
		}
		if apierrors.IsConflict(err) {
			continue // the deadline still holds
		}
		if err := r.sleep(ctx); err != nil {
			return err
		}
	}
}

// sleep waits until it is time to try again, or returns the cause of ctx's end.
func (r *Switcher) sleep(ctx context.Context) error {
	timer := r.clock.NewTimer(pollInterval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C():
		return nil
	}
}

// isNodeReady reads the Ready condition.
func isNodeReady(node *corev1.Node) bool {
	return inventory.FromNode(node).Ready == corev1.ConditionTrue
}

// heartbeat is when the kubelet last reported the node's status, on the node's clock.
func heartbeat(node *corev1.Node) time.Time {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.LastHeartbeatTime.Time
		}
	}
	return time.Time{}
}
