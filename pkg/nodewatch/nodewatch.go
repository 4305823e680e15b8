// Package nodewatch knows one Node and its pods as the API server reported them last, by one watch each, so that waiting costs no requests. What it
// returns may be a moment old. It decides nothing and writes nothing: what has to be true now is asked of the API server by its callers, the rollout,
// nodejob and drain. Nodes are all Nodes of a cluster, for a rollout over many.
package nodewatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
)

const (
	// pollInterval is how often Await looks where nothing is watched, and how long a watch that ended with an error is left alone.
	pollInterval = 500 * time.Millisecond
	// calmInterval is how often Await looks although nothing has changed.
	calmInterval = 5 * time.Second
	// forbiddenPause is how long a watch is left alone that the user may not make: the right to it may come.
	forbiddenPause = 30 * time.Second
	// watchSeconds ends a watch on the server's side. It is continued, not begun again.
	watchSeconds = 300
	// silence ends a watch whose connection may be dead: a server sends a bookmark every minute where nothing happens (k8s.io/apiserver v0.37.2
	// pkg/storage/cacher, bookmarkFrequency).
	silence = 90 * time.Second
)

// Watch is one node and its pods.
type Watch struct {
	feed
	client kubernetes.Interface
	name   string
	onNode string // the field selector of its pods

	mu   sync.Mutex
	node *corev1.Node              // nil while the Node is not watched
	pods map[types.UID]*corev1.Pod // nil while pods are not watched
	// version is the newest list of pods that was seen. No later one may be older.
	version string
	changed chan struct{} // closed with the next change
	// listed is closed when the first list of pods is there, or has failed.
	listed chan struct{}
}

// New makes a Watch that watches nothing before Start: each look is a request until then.
func New(client kubernetes.Interface, clock clock.WithTicker, node string) *Watch {
	listed := make(chan struct{})
	close(listed)
	return &Watch{
		feed: feed{clock}, client: client, name: node, version: "0", changed: make(chan struct{}), listed: listed,
		onNode: fields.OneTermEqualSelector("spec.nodeName", node).String(),
	}
}

// Start watches until ctx ends. Node is the node as it was read just now, or nil.
func (w *Watch) Start(ctx context.Context, node *corev1.Node) {
	w.listed = make(chan struct{})
	var once sync.Once
	go w.keep(ctx, func(ctx context.Context) error {
		from := node
		node = nil
		defer w.setNode(nil)
		return w.followNode(ctx, from)
	})
	go w.keep(ctx, func(ctx context.Context) error {
		defer once.Do(func() { close(w.listed) })
		defer w.setPods(nil, "")
		return w.followPods(ctx, func() { once.Do(func() { close(w.listed) }) })
	})
}

// Node is the node as it was reported last; a request where it is not watched.
func (w *Watch) Node(ctx context.Context) (*corev1.Node, error) {
	w.mu.Lock()
	node := w.node
	w.mu.Unlock()
	if node != nil {
		return node.DeepCopy(), nil
	}
	return w.client.CoreV1().Nodes().Get(ctx, w.name, metav1.GetOptions{})
}

// Pods are the pods on the node as they were reported last, the oldest first; a request where they are not watched. What they point to is not for
// callers to change.
func (w *Watch) Pods(ctx context.Context) ([]corev1.Pod, error) {
	select {
	case <-w.listed:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if pods, watched := w.Seen(); watched {
		return pods, nil
	}
	list, err := w.list(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list.Items, older)
	return list.Items, nil
}

// Seen is Pods without a request; watched is false where there would be one.
func (w *Watch) Seen() (pods []corev1.Pod, watched bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, pod := range w.pods {
		pods = append(pods, *pod)
	}
	slices.SortFunc(pods, older)
	return pods, w.pods != nil
}

func older(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) }

// Watched reports whether pods and Node are watched now, so that a look at them is no request.
func (w *Watch) Watched() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.node != nil && w.pods != nil
}

// Changed is closed when anything changes after this call.
func (w *Watch) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// Await calls look now, after each change, and now and then without one, until it is done or ctx ends, whose cause is then returned with the last
// word of look.
func (w *Watch) Await(ctx context.Context, look func() (done bool, last error)) error {
	for {
		changed := w.Changed()
		done, last := look()
		if done {
			return last
		}
		if err := w.pause(ctx, changed); err != nil {
			if last == nil || errors.Is(last, context.Canceled) || errors.Is(last, context.DeadlineExceeded) {
				return err
			}
			return fmt.Errorf("%w: %w", err, last)
		}
	}
}

// pause waits until it is time to look again, or returns the cause of ctx's end.
func (w *Watch) pause(ctx context.Context, changed <-chan struct{}) error {
	interval := pollInterval
	if w.Watched() {
		interval = calmInterval
	}
	timer := w.clock.NewTimer(interval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C():
	case <-changed:
	}
	return nil
}

// followNode watches the Node until that fails, from the state that is given. One Node is read as it is now, which costs the server little.
func (w *Watch) followNode(ctx context.Context, node *corev1.Node) error {
	if node == nil {
		var err error
		if node, err = w.client.CoreV1().Nodes().Get(ctx, w.name, metav1.GetOptions{}); err != nil {
			return err
		}
	}
	only := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, w.name).String()}
	return w.follow(ctx, only, node.ResourceVersion, w.client.CoreV1().Nodes().Watch, func(event apiwatch.Event) error {
		node, ok := event.Object.(*corev1.Node)
		if !ok || event.Type == apiwatch.Deleted {
			return errors.New("the Node is gone")
		}
		w.setNode(node)
		return nil
	}, func() { w.setNode(node) })
}

// followPods watches pods until that fails, and calls listed with the first list.
func (w *Watch) followPods(ctx context.Context, listed func()) error {
	list, err := w.list(ctx)
	if err != nil {
		return err
	}
	pods := map[types.UID]*corev1.Pod{}
	for i := range list.Items {
		pods[list.Items[i].UID] = &list.Items[i]
	}
	return w.follow(ctx, metav1.ListOptions{FieldSelector: w.onNode}, list.ResourceVersion, w.client.CoreV1().Pods(metav1.NamespaceAll).Watch, func(event apiwatch.Event) error {
		if pod, ok := event.Object.(*corev1.Pod); ok {
			w.setPod(pod, event.Type == apiwatch.Deleted)
		}
		return nil
	}, func() { w.setPods(pods, list.ResourceVersion); listed() })
}

// list lists the node's pods as the server's cache has them, which answers at once in a cluster of any size; what lies in etcd is read in full for
// that. It is no older than what was seen before.
func (w *Watch) list(ctx context.Context) (*corev1.PodList, error) {
	w.mu.Lock()
	version := w.version
	w.mu.Unlock()
	list, err := w.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: w.onNode, ResourceVersion: version})
	if apierrors.IsResourceExpired(err) || apierrors.IsTimeout(err) && version != "0" { // a server that has not come so far, or was restored from a backup
		list, err = w.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: w.onNode})
	}
	return list, err
}

func (w *Watch) setNode(node *corev1.Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.node = node
	w.signal()
}

// setPods takes a list of pods, nil if they are watched no more.
func (w *Watch) setPods(pods map[types.UID]*corev1.Pod, version string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pods = pods; version != "" {
		w.version = version
	}
	w.signal()
}

func (w *Watch) setPod(pod *corev1.Pod, isGone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if isGone {
		delete(w.pods, pod.UID)
	} else {
		w.pods[pod.UID] = pod
	}
	w.version = pod.ResourceVersion
	w.signal()
}

func (w *Watch) signal() {
	close(w.changed)
	w.changed = make(chan struct{})
}
