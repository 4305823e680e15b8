package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// annotationOldCRISocket remembers kubeadm's cri-socket annotation for the way back.
const annotationOldCRISocket = inventory.Prefix + "old-cri-socket"

// annotationFromEndpoint remembers protocol.Facts.OldEndpoint: a node cannot go back to a dockershim that its kubelet no longer has.
const annotationFromEndpoint = inventory.Prefix + "from-endpoint"

// annotationAgentImage remembers the agent's image that a run was begun with.
const annotationAgentImage = inventory.Prefix + "agent-image"

// annotationUnproven lists the canary's checks that failed on the old runtime before the run cordoned the node, comma-separated. They say nothing of
// the new runtime, nor of the old one after a rollback.
const annotationUnproven = inventory.Prefix + "failed-before"

// kubeadmContainerd is how kubeadm writes containerd's endpoint (cmd/kubeadm/app/constants, CRISocketContainerd).
const kubeadmContainerd = "unix:///var/run/containerd/containerd.sock"

const (
	// apiPatience is how long a request is tried again that has to succeed for a node not to be left as it is.
	apiPatience = time.Minute
	// pollInterval is the pause before a request is tried again.
	pollInterval = 500 * time.Millisecond
)

// annotations is a change of annotations; the empty string removes one.
type annotations map[string]string

func (a annotations) patch() map[string]any {
	set := map[string]any{}
	for key, value := range a {
		if value == "" {
			set[key] = nil
		} else {
			set[key] = value
		}
	}
	return set
}

// nodePatch is a merge patch of a Node.
func nodePatch(set annotations, unschedulable *bool, resourceVersion string) ([]byte, error) {
	metadata := map[string]any{"annotations": set.patch()}
	if resourceVersion != "" {
		metadata["resourceVersion"] = resourceVersion
	}
	patch := map[string]any{"metadata": metadata}
	if unschedulable != nil {
		value := any(nil) // absent is how kubectl uncordon leaves it
		if *unschedulable {
			value = true
		}
		patch["spec"] = map[string]any{"unschedulable": value}
	}
	data, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	return data, nil
}

// getNode reads a node, and tries again while the server is away.
func (r *Rollout) getNode(ctx context.Context, name string) (*corev1.Node, error) {
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

// annotate changes annotations of the node, and returns it as it is then. This and what follows write only while the claim is this session's.
func (s *session) annotate(ctx context.Context, set annotations) (node *corev1.Node, err error) {
	patch, err := nodePatch(set, nil, "")
	if err != nil {
		return nil, err
	}
	err = s.retry(ctx, func() error {
		if err := s.held.keep(ctx); err != nil {
			return err
		}
		node, err = s.client.CoreV1().Nodes().Patch(ctx, s.name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("annotate node %s: %w", s.name, err)
	}
	return node, nil
}

// changeNode patches what change returns for the node, as one change: if the node is no longer as change saw it, it starts over. So it begins with
// the node as it is watched.
func (s *session) changeNode(ctx context.Context, change func(*corev1.Node) (annotations, *bool)) error {
	read := s.watch.Node
	return s.retry(ctx, func() error {
		if err := s.held.keep(ctx); err != nil {
			return err
		}
		node, err := read(ctx)
		if err != nil {
			return err
		}
		set, unschedulable := change(node)
		patch, err := nodePatch(set, unschedulable, node.ResourceVersion)
		if err != nil {
			return err
		}
		_, err = s.client.CoreV1().Nodes().Patch(ctx, s.name, types.MergePatchType, patch, metav1.PatchOptions{})
		read = s.readNode
		return err
	})
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

// readNode reads the node as it is now.
func (s *session) readNode(ctx context.Context) (*corev1.Node, error) {
	return s.client.CoreV1().Nodes().Get(ctx, s.name, metav1.GetOptions{})
}

// protect keeps autoscalers off a node that is about to be emptied, and notes what of that was not there before.
func protect(node *corev1.Node, set annotations) {
	var ours []string
	for _, key := range inventory.AutoscalerAnnotations() {
		if _, there := node.Annotations[key]; !there {
			set[key] = "true"
			ours = append(ours, key)
		}
	}
	if len(ours) > 0 { // a second cordon of the same run finds them there, and must not forget whose they are
		set[inventory.AnnotationProtected] = strings.Join(ours, ",")
	}
}

// unprotect removes what protect has set, unless somebody has changed it since.
func unprotect(node *corev1.Node, set annotations) {
	ours := strings.Split(node.Annotations[inventory.AnnotationProtected], ",")
	for _, key := range inventory.AutoscalerAnnotations() {
		if slices.Contains(ours, key) && node.Annotations[key] == "true" {
			set[key] = ""
		}
	}
	set[inventory.AnnotationProtected] = ""
}

// cordon cordons the node and remembers in the same request whether it was cordoned before: no other moment is known to be right. A
// run that is resumed remembers already. More are other annotations for the same request.
func (s *session) cordon(ctx context.Context, more annotations) (wasCordoned bool, err error) {
	err = s.changeNode(ctx, func(node *corev1.Node) (annotations, *bool) {
		remembered, ok := node.Annotations[inventory.AnnotationWasUnschedulable]
		if !ok {
			remembered = fmt.Sprint(node.Spec.Unschedulable)
		}
		wasCordoned = remembered == "true"
		yes := true
		set := annotations{inventory.AnnotationWasUnschedulable: remembered}
		protect(node, set)
		maps.Copy(set, more)
		return set, &yes
	})
	if err != nil {
		return false, fmt.Errorf("cordon node %s: %w", s.name, err)
	}
	return wasCordoned, nil
}

// uncordon undoes our cordon, with other annotations in the same request, those that also adds among them; a node that was cordoned before stays so.
func (s *session) uncordon(ctx context.Context, more annotations, also ...func(*corev1.Node, annotations)) (cordoned bool, err error) {
	err = s.proveClaim(ctx)
	if err == nil {
		err = s.changeNode(ctx, func(node *corev1.Node) (annotations, *bool) {
			set := annotations{inventory.AnnotationWasUnschedulable: ""}
			unprotect(node, set)
			maps.Copy(set, more)
			for _, add := range also {
				add(node, set)
			}
			cordoned = node.Spec.Unschedulable
			if node.Annotations[inventory.AnnotationWasUnschedulable] != "false" {
				return set, nil
			}
			cordoned = false
			no := false
			return set, &no
		})
	}
	if err != nil {
		return false, fmt.Errorf("uncordon node %s: %w", s.name, err)
	}
	return cordoned, nil
}

// switchCRISocket points kubeadm's annotation to containerd where there is one, and remembers the old value.
func switchCRISocket(endpoint string) func(*corev1.Node, annotations) {
	return func(node *corev1.Node, set annotations) {
		old, ok := node.Annotations[inventory.AnnotationCRISocket]
		wanted := kubeadmEndpoint(endpoint)
		if !ok || old == wanted {
			return
		}
		set[inventory.AnnotationCRISocket] = wanted
		if _, remembered := node.Annotations[annotationOldCRISocket]; !remembered {
			set[annotationOldCRISocket] = old
		}
	}
}

// restoreCRISocket undoes switchCRISocket.
func restoreCRISocket(node *corev1.Node, set annotations) {
	if old, ok := node.Annotations[annotationOldCRISocket]; ok {
		set[inventory.AnnotationCRISocket], set[annotationOldCRISocket] = old, ""
	}
}

// kubeadmEndpoint spells an endpoint as kubeadm does: /run is /var/run there.
func kubeadmEndpoint(endpoint string) string {
	path := strings.TrimPrefix(endpoint, "unix://")
	switch {
	case path == "":
		return kubeadmContainerd
	case strings.HasPrefix(path, "/run/"):
		return "unix:///var" + path
	default:
		return "unix://" + path
	}
}

// retry calls request until it succeeds, fails for good, or the server has been away for too long.
func (r *Rollout) retry(ctx context.Context, request func() error) error {
	deadline := r.clock.Now().Add(apiPatience)
	for {
		err := request()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errClaimLost), !nodejob.IsTransient(err), r.clock.Now().After(deadline):
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
func (r *Rollout) sleep(ctx context.Context) error {
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
