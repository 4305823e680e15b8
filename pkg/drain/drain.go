// Package drain takes pods off a node with kubectl's own drain library, the safe way: its constructor sets what the library's
// zero values get wrong, and a pod that a PodDisruptionBudget holds back is reported with the budget's name. It cordons and
// uncordons, and leaves it to its caller, the rollout, to know whose cordon it is.
package drain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubectl/pkg/drain"
	"k8s.io/utils/clock"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodewatch"
)

// evictRetryDelay is the pause between two attempts to evict a pod that a budget holds back. The library's zero value is a
// hot loop; kubectl waits as long as this (k8s.io/kubectl v0.37.2 pkg/cmd/drain/drain.go).
const evictRetryDelay = 5 * time.Second

// outagePatience is how long requests may fail in a row.
const outagePatience = 2 * time.Minute

// PodGrace is GracePeriodSeconds for "as the pod itself says". The library's zero value kills at once.
const PodGrace = -1

// Options are kubectl drain's flags, with its meanings. DaemonSet pods always stay.
type Options struct {
	// Force also removes pods that no controller will recreate.
	Force bool
	// GracePeriodSeconds is given to each pod; negative means the pod's own.
	GracePeriodSeconds int
	// Timeout bounds the whole drain; 0 means no bound.
	Timeout time.Duration
	// DeleteEmptyDirData also removes pods with emptyDir volumes, whose data is lost.
	DeleteEmptyDirData bool
	// DisableEviction deletes instead of evicting, past every PodDisruptionBudget.
	DisableEviction bool
	// PodSelector restricts the drain to pods with these labels.
	PodSelector string
	// SkipWaitForDeleteTimeoutSeconds does not wait for pods that have been terminating longer than this; 0 waits for all.
	SkipWaitForDeleteTimeoutSeconds int
	// ChunkSize is how many pods one request lists; 0 means all at once.
	ChunkSize int64
	// Keep are labels of the run's own pods: one of them keeps a pod on the node.
	Keep map[string]string
}

// Observer gets the progress of a drain. It is called from several goroutines at once.
type Observer interface {
	// Evicting is called once for a pod, before the first attempt.
	Evicting(pod *corev1.Pod)
	// Blocked is called after each attempt that the server refused because of a PodDisruptionBudget.
	Blocked(block Block)
	// Gone is called when a pod has left the node.
	Gone(pod *corev1.Pod)
}

// Block is a pod that cannot be evicted now.
type Block struct {
	Namespace, Pod string
	// Budgets are the PodDisruptionBudgets that select the pod, with their numbers: "web (3 healthy, needs 3)". It is empty where they
	// cannot be read.
	Budgets []string
	// Since is when the first attempt to evict the pod was refused, on this machine's clock.
	Since time.Time
	// Message is the server's own.
	Message string
}

// String is a sentence without a full stop.
func (b Block) String() string {
	text := fmt.Sprintf("pod %s/%s cannot be evicted", b.Namespace, b.Pod)
	if len(b.Budgets) > 0 {
		text += ": PodDisruptionBudget " + strings.Join(b.Budgets, ", ")
	} else if b.Message != "" {
		text += ": " + b.Message
	}
	return text
}

// Drainer drains nodes.
type Drainer struct {
	client   kubernetes.Interface
	options  Options
	observer Observer
	now      func() time.Time
	watch    *nodewatch.Watch
}

// New makes a Drainer. Now is the clock.
func New(client kubernetes.Interface, options Options, observer Observer, now func() time.Time) *Drainer {
	return &Drainer{client: client, options: options, observer: observer, now: now}
}

// Watching has the Drainer learn from a watch of the node that pods are gone. Without one, Drain begins its own.
func (d *Drainer) Watching(watch *nodewatch.Watch) *Drainer {
	d.watch = watch
	return d
}

// helper is the only place that builds the library's Helper, which has no constructor of its own.
func (d *Drainer) helper(ctx context.Context, client kubernetes.Interface) *drain.Helper {
	return &drain.Helper{
		Ctx:                             ctx,
		Client:                          client,
		Force:                           d.options.Force,
		GracePeriodSeconds:              d.options.GracePeriodSeconds,
		IgnoreAllDaemonSets:             true,
		Timeout:                         d.options.Timeout,
		DeleteEmptyDirData:              d.options.DeleteEmptyDirData,
		PodSelector:                     d.selector(),
		ChunkSize:                       d.options.ChunkSize,
		DisableEviction:                 d.options.DisableEviction,
		SkipWaitForDeleteTimeoutSeconds: d.options.SkipWaitForDeleteTimeoutSeconds,
		EvictErrorRetryDelay:            evictRetryDelay,
		// The library writes to both unconditionally. What it says arrives through the hooks and the errors.
		Out:    io.Discard,
		ErrOut: io.Discard,
	}
}

// selector leaves out the run's own pods. A filter of ours would come too late: the library's own come first and end in an error for
// a pod without a controller, as a canary is.
func (d *Drainer) selector() string {
	var terms []string
	if d.options.PodSelector != "" {
		terms = append(terms, d.options.PodSelector)
	}
	for key, value := range d.options.Keep {
		terms = append(terms, key+"!="+value)
	}
	return strings.Join(terms, ",")
}

// Check lists the pods that a drain of the node would remove. The error names each kind of pod that it would refuse to remove
// and the flag that allows it. It changes nothing.
func (d *Drainer) Check(ctx context.Context, node string) ([]corev1.Pod, error) {
	list, errs := d.helper(ctx, d.client).GetPodsForDeletion(node)
	if len(errs) > 0 {
		slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return nil, errors.Join(errs...)
	}
	return list.Pods(), nil
}

// TimeoutError says that a drain gave up, and which pods were left.
type TimeoutError struct {
	Timeout time.Duration
	// Blocked are the pods that a budget held back to the end.
	Blocked []Block
	// Left are the other pods that were still there: "namespace/name".
	Left []string
}

func (e *TimeoutError) Error() string {
	text := fmt.Sprintf("not finished after %s", e.Timeout)
	var parts []string
	for _, block := range e.Blocked {
		parts = append(parts, block.String())
	}
	if len(e.Left) > 0 {
		parts = append(parts, "still terminating: "+strings.Join(e.Left, ", "))
	}
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, "; ")
	}
	return text
}

// Drain removes the pods from a node that is cordoned. Running out of time is a *TimeoutError. A request that fails and may succeed
// when it is sent again does not end it, unless that lasts for outagePatience.
func (d *Drainer) Drain(ctx context.Context, node string) error {
	watch := newBlockWatch(d)
	started := d.now()
	var failing time.Time
	for {
		left := d.options.Timeout
		if left > 0 {
			left = max(left-d.now().Sub(started), time.Millisecond) // 0 would be no bound
		}
		began := d.now()
		err := d.tryDrain(ctx, node, watch, left)
		now := d.now()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("drain node %s: %w", node, context.Cause(ctx))
		case left > 0 && now.Sub(started) >= d.options.Timeout:
			return fmt.Errorf("drain node %s: %w", node, watch.timeout(d.options.Timeout))
		}
		if failing.IsZero() || now.Sub(began) > evictRetryDelay {
			failing = now
		}
		if !watch.mayPass(err) || now.Sub(failing) > outagePatience {
			return fmt.Errorf("drain node %s: %w", node, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(evictRetryDelay):
		}
	}
}

// tryDrain drains until the first error. The library ends a drain with it, a single look at a pod that failed included.
func (d *Drainer) tryDrain(ctx context.Context, node string, watch *blockWatch, timeout time.Duration) error {
	pods, err := d.Check(ctx, node)
	if err != nil {
		return &checkError{err}
	}
	watch.begin(pods)
	if len(pods) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	departures := &departures{watch: d.watch, seen: map[types.UID]bool{}}
	if departures.watch == nil {
		departures.watch = nodewatch.New(d.client, clock.RealClock{}, node)
		departures.watch.Start(ctx, nil)
	}
	helper := d.helper(ctx, watch.client(ctx, pods, departures))
	helper.Timeout = timeout
	helper.OnPodDeletionOrEvictionStarted = func(pod *corev1.Pod, _ bool) { watch.started(pod) }
	helper.OnPodDeletionOrEvictionFinished = func(pod *corev1.Pod, _ bool, err error) {
		if err == nil {
			watch.finished(pod)
		}
	}
	gone := make(chan bool, 1)
	go func() {
		isGone := departures.await(ctx, pods)
		if isGone {
			cancel() // the library has nothing left to wait for
		}
		gone <- isGone
	}()
	err = helper.DeleteOrEvictPods(pods)
	cancel()
	if <-gone {
		for i := range pods {
			watch.finished(&pods[i])
		}
		return nil
	}
	return err
}

// checkError is a drain that could not begin.
type checkError struct{ err error }

func (e *checkError) Error() string { return e.err.Error() }

func (e *checkError) Unwrap() error { return e.err }

// isTransient tells a request that may succeed when it is sent again from one that was refused, and both from a verdict of the library.
func isTransient(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return status.Status().Code >= http.StatusInternalServerError || apierrors.IsTooManyRequests(err)
	}
	var noAnswer *url.Error
	return errors.As(err, &noAnswer)
}

// blockWatch knows which pods are held back and which are still there.
type blockWatch struct {
	drainer *Drainer
	mu      sync.Mutex
	seen    map[string]bool
	left    map[string]bool
	blocked map[string]Block
	refused bool // an eviction, for good
}

func newBlockWatch(d *Drainer) *blockWatch {
	return &blockWatch{drainer: d, seen: map[string]bool{}, left: map[string]bool{}, blocked: map[string]Block{}}
}

// begin takes note of the pods that an attempt is about.
func (w *blockWatch) begin(pods []corev1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left = map[string]bool{}
	for i := range pods {
		w.left[pods[i].Namespace+"/"+pods[i].Name] = true
	}
}

// mayPass judges what ended an attempt. Of what went wrong with a pod the library's error has the text alone, so that the evictions that
// were refused are what is known; any other request, a look at a pod say, may succeed the next time.
func (w *blockWatch) mayPass(err error) bool {
	var check *checkError
	if errors.As(err, &check) {
		return isTransient(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.refused
}

func (w *blockWatch) started(pod *corev1.Pod) {
	key := pod.Namespace + "/" + pod.Name
	w.mu.Lock()
	first := !w.seen[key]
	w.seen[key] = true
	w.mu.Unlock()
	if first {
		w.drainer.observer.Evicting(pod)
	}
}

func (w *blockWatch) finished(pod *corev1.Pod) {
	key := pod.Namespace + "/" + pod.Name
	w.mu.Lock()
	known := w.left[key]
	delete(w.left, key)
	delete(w.blocked, key)
	w.mu.Unlock()
	if known {
		w.drainer.observer.Gone(pod)
	}
}

// evicted gets the result of each attempt.
func (w *blockWatch) evicted(block Block) {
	key := block.Namespace + "/" + block.Pod
	w.mu.Lock()
	if before, ok := w.blocked[key]; ok {
		block.Since = before.Since
	}
	w.blocked[key] = block
	w.mu.Unlock()
	w.drainer.observer.Blocked(block)
}

func (w *blockWatch) accepted(namespace, pod string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.blocked, namespace+"/"+pod)
}

func (w *blockWatch) timeout(after time.Duration) *TimeoutError {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := &TimeoutError{Timeout: after}
	for key := range w.left {
		if block, ok := w.blocked[key]; ok {
			err.Blocked = append(err.Blocked, block)
		} else {
			err.Left = append(err.Left, key)
		}
	}
	slices.Sort(err.Left)
	slices.SortFunc(err.Blocked, func(a, b Block) int {
		return strings.Compare(a.Namespace+"/"+a.Pod, b.Namespace+"/"+b.Pod)
	})
	return err
}
