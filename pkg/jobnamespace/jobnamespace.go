// Package jobnamespace is this program's namespace in the cluster. Pod Security lets privileged pods into it only while a run is open: the first run
// opens the namespace, the last one restores the labels that were there before. Which runs are open is in the namespace's annotations.
package jobnamespace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/claim"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
)

// PodSecurityLabels let privileged pods into the namespace (k8s.io/pod-security-admission v0.37.2 api/constants.go).
var PodSecurityLabels = []string{
	"pod-security.kubernetes.io/enforce", "pod-security.kubernetes.io/audit", "pod-security.kubernetes.io/warn",
}

// The levels of Pod Security.
const Privileged, Restricted = "privileged", "restricted"

// Annotations of the namespace.
const (
	// annotationBefore is what PodSecurityLabels were before the first of the runs that are open, in JSON; null for a label that was not set.
	annotationBefore = nodestate.Prefix + "pod-security-before"
	// annotationOpen, and a hash behind it, is there for each run that is open. Its value names the node; for a look at a host, it is when
	// that look ends at the latest.
	annotationOpen = nodestate.Prefix + "open-"
)

// Namespace is this program's namespace of a cluster.
type Namespace struct {
	Client kubernetes.Interface
	Clock  clock.Clock
}

// Ensure creates the namespace where it is missing, closed to privileged pods.
func (n Namespace) Ensure(ctx context.Context) (*corev1.Namespace, error) {
	namespaces := n.Client.CoreV1().Namespaces()
	existing, err := namespaces.Get(ctx, nodejob.Namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: nodejob.Namespace, Labels: nodejob.Labels()}}
		for _, label := range PodSecurityLabels {
			namespace.Labels[label] = Restricted
		}
		existing, err = namespaces.Create(ctx, namespace, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			existing, err = namespaces.Get(ctx, nodejob.Namespace, metav1.GetOptions{})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", nodejob.Namespace, err)
	}
	if existing.DeletionTimestamp != nil {
		return nil, fmt.Errorf("namespace %s is being deleted: wait until it is gone", nodejob.Namespace)
	}
	return existing, nil
}

// Key is the annotation of one run. It is named by its node, so that a run that is resumed has the same, or by a look.
func Key(name string) string {
	sum := sha256.Sum256([]byte(name))
	return annotationOpen + hex.EncodeToString(sum[:8])
}

// Open lets privileged pods into the namespace until Close is called for the same key. Whoever calls it holds the claim on
// the node, or makes a look. Namespace is as it was read before. Added is false if the key was there before; opened is the namespace then, nil if it
// was not changed. It is no error to lack the right where nothing has to be changed.
func (n Namespace) Open(ctx context.Context, namespace *corev1.Namespace, key, value string) (opened *corev1.Namespace, added bool, err error) {
	open := IsOpen(namespace)
	before := namespace.Annotations[annotationBefore]
	if before == "" {
		if open && namespace.Labels[nodejob.LabelManagedBy] != nodejob.Labels()[nodejob.LabelManagedBy] {
			return nil, false, nil // somebody else keeps it like that
		}
		if before, err = levelsOf(namespace); err != nil {
			return nil, false, err
		}
	}
	labels := map[string]any{}
	for _, label := range PodSecurityLabels {
		labels[label] = Privileged
	}
	_, had := namespace.Annotations[key]
	// Both annotations in any case: a run that ends at this moment takes them away, and then this patch comes later.
	opened, err = n.patch(ctx, map[string]any{"labels": labels, "annotations": map[string]any{annotationBefore: before, key: value}})
	if apierrors.IsForbidden(err) && open {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("let privileged pods into namespace %s: %w", nodejob.Namespace, err)
	}
	return opened, !had, nil
}

// levelsOf is the value of annotationBefore. Earlier versions left the namespace privileged.
func levelsOf(namespace *corev1.Namespace) (string, error) {
	levels := map[string]any{}
	for _, label := range PodSecurityLabels {
		level, ok := namespace.Labels[label]
		switch {
		case IsOpen(namespace):
			levels[label] = Restricted
		case ok:
			levels[label] = level
		default:
			levels[label] = nil
		}
	}
	text, err := json.Marshal(levels)
	if err != nil {
		return "", fmt.Errorf("encode labels: %w", err)
	}
	return string(text), nil
}

// closeTries is how often Close meets another run that opens or closes the namespace at the same moment, and closePause how long it waits then.
const (
	closeTries = 50
	closePause = 50 * time.Millisecond
)

// Close ends what Open began. Where no other run is open, the namespace is as it was before. Known is the namespace as this process
// knows it, or nil: where it was changed since, it is read again.
func (n Namespace) Close(ctx context.Context, key string, known *corev1.Namespace) error {
	for try := 1; ; try++ {
		namespace, err := known, error(nil)
		if known = nil; namespace == nil {
			namespace, err = n.Client.CoreV1().Namespaces().Get(ctx, nodejob.Namespace, metav1.GetOptions{})
		}
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("close namespace %s: %w", nodejob.Namespace, err)
		}
		if _, has := namespace.Annotations[key]; !has {
			return nil
		}
		annotations := map[string]any{key: nil}
		// Who opens the namespace meanwhile changes its resource version.
		patch := map[string]any{"annotations": annotations, "resourceVersion": namespace.ResourceVersion}
		if !n.hasOpenRun(ctx, namespace, key) {
			for name := range namespace.Annotations {
				if strings.HasPrefix(name, annotationOpen) {
					annotations[name] = nil
				}
			}
			patch["labels"] = levelsBefore(namespace)
			annotations[annotationBefore] = nil
		}
		_, err = n.patch(ctx, patch)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if apierrors.IsConflict(err) && try < closeTries && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-n.Clock.After(wait.Jitter(closePause, 2)): // others do the same
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("namespace %s still lets privileged pods in: %w", nodejob.Namespace, err)
		}
		return nil
	}
}

// OpenRuns are the nodes of the runs that are open, and how many looks there are, but for that of one key.
func (n Namespace) OpenRuns(namespace *corev1.Namespace, but string) (nodes []string, looks int) {
	for name, value := range namespace.Annotations {
		if !strings.HasPrefix(name, annotationOpen) || name == but {
			continue
		}
		if until, err := time.Parse(time.RFC3339, value); err != nil {
			nodes = append(nodes, value)
		} else if n.Clock.Now().Before(until) {
			looks++
		}
	}
	slices.Sort(nodes)
	return nodes, looks
}

// hasOpenRun reports whether a run but that of one key is open. One whose node is gone, or was made to forget it, is not. In doubt it is true.
func (n Namespace) hasOpenRun(ctx context.Context, namespace *corev1.Namespace, but string) bool {
	nodes, looks := n.OpenRuns(namespace, but)
	return looks > 0 || slices.ContainsFunc(nodes, func(name string) bool {
		lease, err := claim.ReadLease(ctx, n.Client, name)
		if err != nil || lease != nil { // a claim comes before its run
			return true
		}
		node, err := n.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		return err != nil && !apierrors.IsNotFound(err) || err == nil && nodestate.Read(node).IsRunOpen()
	})
}

// levelsBefore are the labels that annotationBefore has; restricted where it cannot be read.
func levelsBefore(namespace *corev1.Namespace) map[string]*string {
	read, levels := map[string]*string{}, map[string]*string{}
	err := json.Unmarshal([]byte(namespace.Annotations[annotationBefore]), &read)
	for _, label := range PodSecurityLabels {
		level, known := read[label]
		if err != nil || !known {
			strict := Restricted
			level = &strict
		}
		levels[label] = level
	}
	return levels
}

func (n Namespace) patch(ctx context.Context, metadata map[string]any) (*corev1.Namespace, error) {
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return nil, fmt.Errorf("encode labels: %w", err)
	}
	return n.Client.CoreV1().Namespaces().Patch(ctx, nodejob.Namespace, types.MergePatchType, patch, metav1.PatchOptions{})
}

// IsOpen reports whether a namespace lets privileged pods in.
func IsOpen(namespace *corev1.Namespace) bool {
	return !slices.ContainsFunc(PodSecurityLabels, func(label string) bool { return namespace.Labels[label] != Privileged })
}
