// Package runevidence collects the evidence of why a run failed: from the API, and from the host by a pod of the agent. It neither saves nor shows it.
package runevidence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/paging"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// File is one file of the evidence of why a run failed. Its name has slashes, and none at the beginning.
type File struct {
	Name string
	Data []byte
}

// Collector asks the cluster, and the host by a pod of the agent.
type Collector struct {
	Client kubernetes.Interface
	Runner *nodejob.Runner
	// Params name the node and the run.
	Params nodejob.EvidenceParams
}

// Gather collects the evidence of why a run failed: the node, its pods and the events as the API has them, and below host/ what the agent gathers on
// the node. What cannot be had is noted in its place; noHost is why nothing came from the host.
func (c *Collector) Gather(ctx context.Context) (files []File, noHost error) {
	add := func(name string, data []byte, err error) {
		if err != nil {
			name, data = name+".missing", []byte(err.Error()+"\n")
		}
		files = append(files, File{name, data})
	}
	node, err := c.node(ctx)
	add("node.yaml", node, err)
	pods, err := c.pods(ctx)
	add("pods.yaml", pods, err)
	events, err := c.events(ctx)
	add("events.txt", events, err)
	if archive, err := c.Runner.Evidence(ctx, c.Params); err != nil {
		add("host", nil, err)
		noHost = err
	} else if host, err := unpack(archive); err != nil {
		add("host", nil, err)
	} else {
		files = append(files, host...)
	}
	return files, noHost
}

// node is the Node without what only makes it long.
func (c *Collector) node(ctx context.Context) ([]byte, error) {
	node, err := c.Client.CoreV1().Nodes().Get(ctx, c.Params.Node, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	node.ManagedFields, node.Status.Images = nil, nil
	return yaml.Marshal(node)
}

// The bounds of what is taken from the API. A kubelet writes its pods' status, and can make events without end.
const (
	// podPage is how many pods one request lists. Their YAML ends after maxPodBytes.
	podPage     = 50
	maxPodBytes = 4 << 20
	// Of at most eventsSeen events the newest maxEvents are kept, each with maxMessage bytes of its message.
	eventsSeen = 10_000
	maxEvents  = 1000
	maxMessage = 2 << 10
)

// pods is name, owner and status of the node's pods. Their specs stay out: environment variables hold secrets.
func (c *Collector) pods(ctx context.Context) ([]byte, error) {
	type pod struct {
		Namespace string                  `json:"namespace"`
		Name      string                  `json:"name"`
		Owners    []metav1.OwnerReference `json:"owners,omitempty"`
		Deleted   *metav1.Time            `json:"deleted,omitempty"`
		Status    corev1.PodStatus        `json:"status"`
	}
	var out bytes.Buffer
	var failed error
	onNode := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", c.Params.Node).String(), Limit: podPage}
	err := paging.Each(ctx, c.Client.CoreV1().Pods(metav1.NamespaceAll).List, onNode, func(p *corev1.Pod) bool {
		data, err := yaml.Marshal([]pod{{p.Namespace, p.Name, p.OwnerReferences, p.DeletionTimestamp, p.Status}})
		if err == nil && out.Len()+len(data) > maxPodBytes {
			out.WriteString("# There are more pods.\n")
			return false
		}
		out.Write(data)
		failed = err
		return err == nil
	})
	return out.Bytes(), errors.Join(err, failed)
}

// events lists the newest events on the node and in this program's namespace, the newest last, a line each.
func (c *Collector) events(ctx context.Context) ([]byte, error) {
	var out bytes.Buffer
	for _, selection := range []struct{ namespace, selector string }{
		{metav1.NamespaceDefault, fields.SelectorFromSet(fields.Set{"involvedObject.kind": "Node", "involvedObject.name": c.Params.Node}).String()},
		{nodejob.Namespace, ""},
	} {
		var newest []eventLine
		seen := 0
		err := paging.Each(ctx, c.Client.CoreV1().Events(selection.namespace).List, metav1.ListOptions{FieldSelector: selection.selector}, func(e *corev1.Event) bool {
			if newest = append(newest, lineOf(e)); len(newest) == 2*maxEvents {
				newest = newestOf(newest)
			}
			seen++
			return seen < eventsSeen
		})
		if err != nil {
			return nil, err
		}
		if newest = newestOf(newest); seen > len(newest) {
			fmt.Fprintf(&out, "(%d of %d events or more)\n", len(newest), seen)
		}
		for _, line := range newest {
			out.WriteString(line.text)
		}
	}
	return out.Bytes(), nil
}

type eventLine struct {
	at   time.Time
	text string
}

func lineOf(e *corev1.Event) eventLine {
	at := e.LastTimestamp.Time
	if at.IsZero() {
		at = e.EventTime.Time
	}
	word := func(text string) string { return untrusted.Line(text, maxMessage) }
	return eventLine{at, fmt.Sprintf(
		"%s %s %s %s/%s: %s\n", at.UTC().Format(time.RFC3339), word(e.Type), word(e.Reason), word(e.InvolvedObject.Kind), word(e.InvolvedObject.Name), word(e.Message),
	)}
}

// newestOf are at most maxEvents of some events, the newest last.
func newestOf(events []eventLine) []eventLine {
	slices.SortStableFunc(events, func(a, b eventLine) int { return a.at.Compare(b.at) })
	return events[max(0, len(events)-maxEvents):]
}

// unpack returns the files of the agent's archive, below host/.
func unpack(archive []byte) ([]File, error) {
	unpacked, err := untrusted.Archive(archive)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, file := range unpacked {
		files = append(files, File{"host/" + file.Name, file.Data})
	}
	return files, nil
}
