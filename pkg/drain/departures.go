package drain

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodewatch"
)

// departures knows from a watch which pods have left the node. The library asks for each of them once a second, and may learn of the last one a second
// late, while the node is out of service.
type departures struct {
	watch *nodewatch.Watch

	mu   sync.Mutex
	seen map[types.UID]bool
}

// look returns a pod as the watch knows it, or that it is gone. Neither means that the watch does not know: it may be older than the list that the pod
// was found in.
func (d *departures) look(uid types.UID) (pod *corev1.Pod, gone bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	pods, watched := d.watch.Seen()
	if !watched {
		return nil, false
	}
	for i := range pods {
		if pods[i].UID == uid {
			d.seen[uid] = true
			return &pods[i], false
		}
	}
	return nil, d.seen[uid]
}

// await reports that none of the pods is on the node any more, as soon as it is so. It returns false when ctx ends.
func (d *departures) await(ctx context.Context, pods []corev1.Pod) bool {
	err := d.watch.Await(ctx, func() (bool, error) {
		all := true
		for i := range pods { // all of them: look has to see each
			_, gone := d.look(pods[i].UID)
			all = all && gone
		}
		return all, nil
	})
	return err == nil
}

// watchedCore answers requests for single pods from the watch.
type watchedCore struct {
	corev1client.CoreV1Interface
	departures *departures
	uids       map[string]types.UID // of the pods that are removed, by namespace/name
}

func (c *watchedCore) Pods(namespace string) corev1client.PodInterface {
	return &watchedPods{c.CoreV1Interface.Pods(namespace), c, namespace}
}

type watchedPods struct {
	corev1client.PodInterface
	core      *watchedCore
	namespace string
}

func (p *watchedPods) Get(ctx context.Context, name string, options metav1.GetOptions) (*corev1.Pod, error) {
	uid, ok := p.core.uids[p.namespace+"/"+name]
	if !ok {
		return p.PodInterface.Get(ctx, name, options)
	}
	pod, gone := p.core.departures.look(uid)
	switch {
	case gone:
		return nil, apierrors.NewNotFound(corev1.Resource("pods"), name)
	case pod != nil:
		return pod, nil
	}
	return p.PodInterface.Get(ctx, name, options)
}
