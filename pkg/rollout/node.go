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
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

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
	// pollInterval is how often a node is looked at while something is waited for, calmInterval while a watch says what changes.
	pollInterval = 500 * time.Millisecond
	calmInterval = 5 * time.Second
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

// annotate changes annotations of a node. This and what follows write only while the claim is this session's.
func (s *session) annotate(ctx context.Context, name string, set annotations) error {
	patch, err := nodePatch(set, nil, "")
	if err != nil {
		return err
	}
	err = s.retry(ctx, func() error {
		if err := s.held.keep(ctx); err != nil {
			return err
		}
		_, err := s.client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("annotate node %s: %w", name, err)
	}
	return nil
}

// changeNode reads a node and patches what change returns, as one change: if the node was changed meanwhile, it starts over. A nil
// set changes nothing.
func (s *session) changeNode(ctx context.Context, name string, change func(*corev1.Node) (annotations, *bool)) error {
	return s.retry(ctx, func() error {
		if err := s.held.keep(ctx); err != nil {
			return err
		}
		node, err := s.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		set, unschedulable := change(node)
		if set == nil {
			return nil
		}
		patch, err := nodePatch(set, unschedulable, node.ResourceVersion)
		if err != nil {
			return err
		}
		_, err = s.client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
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

// cordon cordons a node and remembers in the same request whether it was cordoned before: no other moment is known to be right. A
// run that is resumed remembers already. More are other annotations for the same request.
func (s *session) cordon(ctx context.Context, name string, more annotations) (wasCordoned bool, err error) {
	err = s.changeNode(ctx, name, func(node *corev1.Node) (annotations, *bool) {
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
		return false, fmt.Errorf("cordon node %s: %w", name, err)
	}
	return wasCordoned, nil
}

// uncordon undoes our cordon, with other annotations in the same request; a node that was cordoned before stays so.
func (s *session) uncordon(ctx context.Context, name string, more annotations) (cordoned bool, err error) {
	err = s.changeNode(ctx, name, func(node *corev1.Node) (annotations, *bool) {
		set := annotations{inventory.AnnotationWasUnschedulable: ""}
		unprotect(node, set)
		maps.Copy(set, more)
		cordoned = node.Spec.Unschedulable
		if node.Annotations[inventory.AnnotationWasUnschedulable] != "false" {
			return set, nil
		}
		cordoned = false
		no := false
		return set, &no
	})
	if err != nil {
		return false, fmt.Errorf("uncordon node %s: %w", name, err)
	}
	return cordoned, nil
}

// switchCRISocket points kubeadm's annotation to containerd where there is one, and remembers the old value.
func (s *session) switchCRISocket(ctx context.Context, name, endpoint string) error {
	err := s.changeNode(ctx, name, func(node *corev1.Node) (annotations, *bool) {
		old, ok := node.Annotations[inventory.AnnotationCRISocket]
		wanted := kubeadmEndpoint(endpoint)
		if !ok || old == wanted {
			return nil, nil
		}
		set := annotations{inventory.AnnotationCRISocket: wanted}
		if _, remembered := node.Annotations[annotationOldCRISocket]; !remembered {
			set[annotationOldCRISocket] = old
		}
		return set, nil
	})
	if err != nil {
		return fmt.Errorf("update %s of node %s: %w", inventory.AnnotationCRISocket, name, err)
	}
	return nil
}

// restoreCRISocket undoes switchCRISocket.
func (s *session) restoreCRISocket(ctx context.Context, name string) error {
	err := s.changeNode(ctx, name, func(node *corev1.Node) (annotations, *bool) {
		old, ok := node.Annotations[annotationOldCRISocket]
		if !ok {
			return nil, nil
		}
		return annotations{inventory.AnnotationCRISocket: old, annotationOldCRISocket: ""}, nil
	})
	if err != nil {
		return fmt.Errorf("restore %s of node %s: %w", inventory.AnnotationCRISocket, name, err)
	}
	return nil
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

// poll calls look again and again until it is done or ctx ends, whose cause is then returned with the last word of look.
func (r *Rollout) poll(ctx context.Context, look func() (done bool, last error)) error {
	return r.pollChange(ctx, nil, look)
}

// pollChange is poll that looks at each change, and seldom without one. Changes is closed where there is no watch.
func (r *Rollout) pollChange(ctx context.Context, changes <-chan struct{}, look func() (done bool, last error)) error {
	for {
		done, last := look()
		if done {
			return last
		}
		watched, err := r.sleepOr(ctx, changes)
		if !watched {
			changes = nil
		}
		if err != nil {
			if last == nil || errors.Is(last, context.Canceled) || errors.Is(last, context.DeadlineExceeded) {
				return err
			}
			return fmt.Errorf("%w: %w", err, last)
		}
	}
}

// sleep waits until it is time to look again, or returns the cause of ctx's end.
func (r *Rollout) sleep(ctx context.Context) error {
	_, err := r.sleepOr(ctx, nil)
	return err
}

// sleepOr also ends with a change, and says whether changes are still watched.
func (r *Rollout) sleepOr(ctx context.Context, changes <-chan struct{}) (watched bool, err error) {
	interval := pollInterval
	if changes != nil {
		interval = calmInterval
	}
	timer := r.clock.NewTimer(interval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return changes != nil, context.Cause(ctx)
	case <-timer.C():
		return changes != nil, nil
	case _, watched = <-changes:
		return watched, nil
	}
}

// podChanges signals that pods on the node have changed, until ctx ends; not each change, where several come at once. It is closed where pods cannot
// be watched, or no more.
func (s *session) podChanges(ctx context.Context) <-chan struct{} {
	return signal(ctx, fields.OneTermEqualSelector("spec.nodeName", s.name), s.client.CoreV1().Pods(metav1.NamespaceAll).Watch)
}

// nodeChanges is podChanges for the Node.
func (s *session) nodeChanges(ctx context.Context) <-chan struct{} {
	return signal(ctx, fields.OneTermEqualSelector(metav1.ObjectNameField, s.name), s.client.CoreV1().Nodes().Watch)
}

func signal(ctx context.Context, selector fields.Selector, start func(context.Context, metav1.ListOptions) (watch.Interface, error)) <-chan struct{} {
	changed := make(chan struct{}, 1)
	go func() {
		defer close(changed)
		changes, err := start(ctx, metav1.ListOptions{FieldSelector: selector.String()})
		if err != nil {
			return
		}
		defer changes.Stop()
		for range changes.ResultChan() {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed
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
