package nodestate

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// kubeadmContainerd is how kubeadm writes containerd's endpoint (cmd/kubeadm/app/constants, CRISocketContainerd).
const kubeadmContainerd = "unix:///var/run/containerd/containerd.sock"

// Claim is what allows to write.
type Claim interface {
	// Keep fails if somebody else may have the node, Prove also asks the API server.
	Keep(ctx context.Context) error
	Prove(ctx context.Context) error
	// Epoch is unique among all claims.
	Epoch() string
}

// Editor changes the state of one node while its claim holds. Between the look at the claim and the write, a process can sleep for so long that another one has
// taken the node over. So each claim writes its epoch into an annotation first, and each write is conditional on the epoch that its claim knows.
type Editor struct {
	Client kubernetes.Interface
	Node   string
	Claim  Claim
	// Seen is the node as it was seen last.
	Seen func(ctx context.Context) (*corev1.Node, error)
	// Retry calls a request again that may succeed then.
	Retry func(ctx context.Context, request func() error) error

	// epoch is the annotation's value as this claim knows it: its own after the first write, before that the one that Took found.
	epoch string
}

// Took notes the node as it was read first under the claim, and reports whether an earlier claim has written its epoch.
func (e *Editor) Took(node *corev1.Node) (earlier bool) {
	e.epoch = node.Annotations[AnnotationEpoch]
	return e.epoch != ""
}

// Fence writes the claim's epoch, and returns the node as it is then: no earlier claim changes it any more.
func (e *Editor) Fence(ctx context.Context) (*corev1.Node, error) {
	node, err := e.change(ctx, func(*corev1.Node) (Set, *bool) { return Set{}, nil })
	if err != nil {
		return nil, fmt.Errorf("fence node %s: %w", e.Node, err)
	}
	return node, nil
}

// Set is a change of annotations; the empty string removes one.
type Set map[string]string

func (s Set) patch() map[string]any {
	set := map[string]any{}
	for key, value := range s {
		if value == "" {
			set[key] = nil
		} else {
			set[key] = value
		}
	}
	return set
}

// nodePatch is a merge patch of a Node.
func nodePatch(set Set, unschedulable *bool, resourceVersion string) ([]byte, error) {
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

// Annotate changes annotations of the node, and returns it as it is then. This and what follows write only while the claim holds.
func (e *Editor) Annotate(ctx context.Context, set Set) (node *corev1.Node, err error) {
	all := func(*corev1.Node) (Set, *bool) { return set, nil }
	if e.epoch != e.Claim.Epoch() {
		node, err = e.change(ctx, all)
	} else if node, err = e.patchInEpoch(ctx, set); apierrors.IsInvalid(err) { // the epoch is another one
		node, err = e.change(ctx, all)
	}
	if err != nil {
		return nil, fmt.Errorf("annotate node %s: %w", e.Node, err)
	}
	return node, nil
}

// patchInEpoch changes annotations on the condition that the node has the claim's epoch, whatever else of it has changed.
func (e *Editor) patchInEpoch(ctx context.Context, set Set) (node *corev1.Node, err error) {
	patch, err := json.Marshal(epochPatch(e.Claim.Epoch(), set))
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	err = e.Retry(ctx, func() error {
		if err := e.Claim.Keep(ctx); err != nil {
			return err
		}
		node, err = e.Client.CoreV1().Nodes().Patch(ctx, e.Node, types.JSONPatchType, patch, metav1.PatchOptions{})
		return err
	})
	return node, err
}

// operation is one of a JSON patch (RFC 6902).
type operation struct {
	Op    string  `json:"op"`
	Path  string  `json:"path"`
	Value *string `json:"value,omitempty"`
}

// epochPatch is a JSON patch of annotations that fails where the epoch is another one.
func epochPatch(epoch string, set Set) []operation {
	path := func(key string) string {
		return "/metadata/annotations/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
	}
	patch := []operation{{"test", path(AnnotationEpoch), &epoch}}
	for _, key := range slices.Sorted(maps.Keys(set)) {
		value := set[key]
		patch = append(patch, operation{"add", path(key), &value})
		if value == "" { // what is not there cannot be removed
			patch = append(patch, operation{"remove", path(key), nil})
		}
	}
	return patch
}

// change patches what change returns for the node, as one change: if the node is no longer as change saw it, it starts over. So it begins with
// the node as it is watched.
func (e *Editor) change(ctx context.Context, change func(*corev1.Node) (Set, *bool)) (node *corev1.Node, err error) {
	read := e.Seen
	err = e.Retry(ctx, func() error {
		if err := e.Claim.Keep(ctx); err != nil {
			return err
		}
		seen, err := read(ctx)
		read = e.now
		if err == nil && seen.Annotations[AnnotationEpoch] != e.epoch {
			seen, err = e.inEpoch(ctx)
		}
		if err != nil {
			return err
		}
		set, unschedulable := change(seen)
		set = maps.Clone(set)
		set[AnnotationEpoch] = e.Claim.Epoch()
		patch, err := nodePatch(set, unschedulable, seen.ResourceVersion)
		if err != nil {
			return err
		}
		if node, err = e.Client.CoreV1().Nodes().Patch(ctx, e.Node, types.MergePatchType, patch, metav1.PatchOptions{}); err == nil {
			e.epoch = e.Claim.Epoch()
		}
		return err
	})
	return node, err
}

// inEpoch reads a node whose epoch seemed to be another one. It is if somebody else took the node over since, who had the claim for that: then this claim is lost.
// If the claim still holds, somebody has edited the annotation.
func (e *Editor) inEpoch(ctx context.Context) (*corev1.Node, error) {
	node, err := e.now(ctx)
	if err != nil || node.Annotations[AnnotationEpoch] == e.epoch {
		return node, err
	}
	if err := e.Claim.Prove(ctx); err != nil {
		return nil, err
	}
	e.Took(node)
	return node, nil
}

// now reads the node as it is now.
func (e *Editor) now(ctx context.Context) (*corev1.Node, error) {
	return e.Client.CoreV1().Nodes().Get(ctx, e.Node, metav1.GetOptions{})
}

// protect keeps autoscalers off a node that is about to be emptied, and notes what of that was not there before.
func protect(node *corev1.Node, set Set) {
	var ours []string
	for _, key := range AutoscalerAnnotations() {
		if _, there := node.Annotations[key]; !there {
			set[key] = "true"
			ours = append(ours, key)
		}
	}
	if len(ours) > 0 { // a second cordon of the same run finds them there, and must not forget whose they are
		set[AnnotationProtected] = strings.Join(ours, ",")
	}
}

// unprotect removes what protect has set, unless somebody has changed it since.
func unprotect(node *corev1.Node, set Set) {
	ours := strings.Split(node.Annotations[AnnotationProtected], ",")
	for _, key := range AutoscalerAnnotations() {
		if slices.Contains(ours, key) && node.Annotations[key] == "true" {
			set[key] = ""
		}
	}
	set[AnnotationProtected] = ""
}

// Cordon cordons the node and remembers in the same request whether it was cordoned before: no other moment is known to be right. A
// run that is resumed remembers already. More are other annotations for the same request.
func (e *Editor) Cordon(ctx context.Context, more Set) (wasCordoned bool, err error) {
	_, err = e.change(ctx, func(node *corev1.Node) (Set, *bool) {
		remembered, ok := node.Annotations[AnnotationWasUnschedulable]
		if !ok {
			remembered = fmt.Sprint(node.Spec.Unschedulable)
		}
		wasCordoned = remembered == "true"
		yes := true
		set := Set{AnnotationWasUnschedulable: remembered}
		protect(node, set)
		maps.Copy(set, more)
		return set, &yes
	})
	if err != nil {
		return false, fmt.Errorf("cordon node %s: %w", e.Node, err)
	}
	return wasCordoned, nil
}

// Uncordon undoes our cordon, with other annotations in the same request, those that also adds among them; a node that was cordoned before stays so.
func (e *Editor) Uncordon(ctx context.Context, more Set, also ...func(*corev1.Node, Set)) (cordoned bool, err error) {
	err = e.Retry(ctx, func() error { return e.Claim.Prove(ctx) })
	if err == nil {
		_, err = e.change(ctx, func(node *corev1.Node) (Set, *bool) {
			set := Set{AnnotationWasUnschedulable: ""}
			unprotect(node, set)
			maps.Copy(set, more)
			for _, add := range also {
				add(node, set)
			}
			cordoned = node.Spec.Unschedulable
			if node.Annotations[AnnotationWasUnschedulable] != "false" {
				return set, nil
			}
			cordoned = false
			no := false
			return set, &no
		})
	}
	if err != nil {
		return false, fmt.Errorf("uncordon node %s: %w", e.Node, err)
	}
	return cordoned, nil
}

// SwitchCRISocket points kubeadm's annotation to containerd where there is one, and remembers the old value.
func SwitchCRISocket(endpoint string) func(*corev1.Node, Set) {
	return func(node *corev1.Node, set Set) {
		old, ok := node.Annotations[AnnotationCRISocket]
		wanted := kubeadmEndpoint(endpoint)
		if !ok || old == wanted {
			return
		}
		set[AnnotationCRISocket] = wanted
		if _, remembered := node.Annotations[AnnotationOldCRISocket]; !remembered {
			set[AnnotationOldCRISocket] = old
		}
	}
}

// RestoreCRISocket undoes SwitchCRISocket.
func RestoreCRISocket(node *corev1.Node, set Set) {
	if old, ok := node.Annotations[AnnotationOldCRISocket]; ok {
		set[AnnotationCRISocket], set[AnnotationOldCRISocket] = old, ""
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

// Begun is the state of a run that begins. WasUnschedulable is that of an earlier run that it takes the place of.
func Begun(run, from, to, agentImage, wasUnschedulable string) Set {
	return Set{
		AnnotationPhase: string(StatePreparing), AnnotationFrom: from, AnnotationTo: to, AnnotationRun: run, AnnotationMessage: "", AnnotationTook: "",
		AnnotationWasUnschedulable: wasUnschedulable, AnnotationOldCRISocket: "", AnnotationFromEndpoint: "", AnnotationFailedBefore: "",
		AnnotationAgentImage: agentImage,
	}
}

// At is a state with its message.
func At(state State, message string) Set {
	return Set{AnnotationPhase: string(state), AnnotationMessage: message}
}

// Own are the annotations of this program on a node, as a change that removes them.
func Own(node *corev1.Node) Set {
	own := Set{}
	for name := range node.Annotations {
		if strings.HasPrefix(name, Prefix) {
			own[name] = ""
		}
	}
	return own
}

// Forget removes annotations from a node that no run is open on.
func Forget(ctx context.Context, client kubernetes.Interface, node string, own Set) error {
	patch, err := nodePatch(own, nil, "")
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}
