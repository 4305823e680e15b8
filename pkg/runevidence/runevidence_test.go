package runevidence

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

var server apiserver.Shared

func TestMain(m *testing.M) { os.Exit(server.Main(m)) }

// TestEvidenceIsBounded: of events the newest are kept, a line each, and of pods as many as there is room for. Both come in pages.
func TestEvidenceIsBounded(t *testing.T) {
	s := server.Get(t)
	ctx := context.Background()
	const node, extra, count = "talkative", 60, 2*podPage + 10
	s.CreateNodes(t, apiserver.Node(node, "docker://20.10.24", "v1.23.17"))
	if _, err := s.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: nodejob.Namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	began := time.Now().Add(-time.Hour).Truncate(time.Second)
	var group errgroup.Group
	group.SetLimit(8)
	for i := range maxEvents + extra {
		group.Go(func() error {
			_, err := s.Client().CoreV1().Events(nodejob.Namespace).Create(ctx, &corev1.Event{
				// The names' order, which is that of a list, is not that of time.
				ObjectMeta:     metav1.ObjectMeta{Namespace: nodejob.Namespace, Name: fmt.Sprintf("e%04d", (i*7)%(maxEvents+extra))},
				InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "x", Namespace: nodejob.Namespace}, Type: corev1.EventTypeNormal, Reason: "Said",
				Message: fmt.Sprintf("event-%d.\n2026-01-01T00:00:00Z Warning forged\x1b[2J", i), LastTimestamp: metav1.NewTime(began.Add(time.Duration(i) * time.Second)),
			}, metav1.CreateOptions{})
			return err
		})
	}
	for i := range count {
		group.Go(func() error {
			pods := s.Client().CoreV1().Pods(metav1.NamespaceDefault)
			pod, err := pods.Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", i)},
				Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			pod.Status.Message = strings.Repeat("m", maxPodBytes/(count-2))
			_, err = pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	c := &Collector{Client: s.Client(), Params: nodejob.EvidenceParams{Node: node}}

	data, err := c.events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if want := fmt.Sprintf("(%d of %d events or more)", maxEvents, maxEvents+extra); lines[0] != want || len(lines) != 1+maxEvents {
		t.Fatalf("%d lines, the first is %q", len(lines), lines[0])
	}
	for i, line := range lines[1:] {
		if !strings.Contains(line, fmt.Sprintf(`Said Pod/x: event-%d. 2026-01-01T00:00:00Z Warning forged\u001b[2J`, i+extra)) {
			t.Fatalf("line %d is %q", i, line)
		}
	}

	data, err = c.pods(ctx)
	if err != nil {
		t.Fatal(err)
	}
	last := strings.TrimSpace(string(data[max(0, len(data)-100):]))
	if got := strings.Count(string(data), "name: pod-"); got <= 2*podPage || got >= count || len(data) > maxPodBytes+100 || !strings.HasSuffix(last, "# There are more pods.") {
		t.Errorf("%d pods, %d bytes, which end with %q", got, len(data), last)
	}
}
