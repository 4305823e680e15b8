package nodewatch

import (
	"context"
	"errors"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
)

// listChunk is how many Nodes one request lists.
const listChunk = 500

// Nodes are all Nodes of the cluster, by one watch. Each is without what is large and of no use here: images, volumes and managed fields.
type Nodes struct {
	feed
	client kubernetes.Interface

	mu      sync.Mutex
	nodes   map[string]*corev1.Node
	changed chan struct{} // closed with the next change
}

// NewNodes makes Nodes that know what was listed just now. Without Start they stay as they are.
func NewNodes(client kubernetes.Interface, clock clock.WithTicker, listed []corev1.Node) *Nodes {
	n := &Nodes{feed: feed{clock}, client: client, nodes: map[string]*corev1.Node{}, changed: make(chan struct{})}
	for i := range listed {
		n.nodes[listed[i].Name] = slim(listed[i].DeepCopy())
	}
	return n
}

// Start watches until ctx ends. Where the user may not watch, the Nodes are listed every half a minute.
func (n *Nodes) Start(ctx context.Context) { go n.keep(ctx, n.followAll) }

// Node is a Node as it was reported last, nil if there is none of this name. It is not for callers to change.
func (n *Nodes) Node(name string) *corev1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[name]
}

// Changed is closed when a Node changes after this call.
func (n *Nodes) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// followAll lists and then watches until that fails.
func (n *Nodes) followAll(ctx context.Context) error {
	nodes := map[string]*corev1.Node{}
	options := metav1.ListOptions{Limit: listChunk}
	version := ""
	for {
		list, err := n.client.CoreV1().Nodes().List(ctx, options)
		if apierrors.IsResourceExpired(err) && options.Continue != "" {
			options.Continue = ""
			clear(nodes)
			continue
		}
		if err != nil {
			return err
		}
		for i := range list.Items {
			nodes[list.Items[i].Name] = slim(&list.Items[i])
		}
		version = list.ResourceVersion
		if options.Continue = list.Continue; options.Continue == "" {
			break
		}
	}
	n.update(func() { n.nodes = nodes })
	return n.follow(ctx, metav1.ListOptions{}, version, n.client.CoreV1().Nodes().Watch, func(event apiwatch.Event) error {
		node, ok := event.Object.(*corev1.Node)
		if !ok {
			return errors.New("an object that is no Node came with the watch")
		}
		n.update(func() {
			if n.nodes[node.Name] = slim(node); event.Type == apiwatch.Deleted {
				delete(n.nodes, node.Name)
			}
		})
		return nil
	}, nil)
}

func (n *Nodes) update(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	close(n.changed)
	n.changed = make(chan struct{})
}

// slim takes away what is large. A Node with 50 images is a tenth of its size then.
func slim(node *corev1.Node) *corev1.Node {
	node.ManagedFields = nil
	node.Status.Images, node.Status.VolumesInUse, node.Status.VolumesAttached = nil, nil, nil
	return node
}
