package bench

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// TestStatus compares `kubectl runtime status` with kubectl's own table of nodes.
func TestStatus(t *testing.T) {
	count := runs(t)
	s, err := apiserver.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	kubectl, config := s.Kubectl(t), apiserver.Kubeconfig(t, s.Admin())
	ways := []struct {
		name string
		args []string
	}{
		{"`kubectl get nodes -o wide`", []string{kubectl, "get", "nodes", "-o", "wide"}},
		{"`kubectl runtime status`", []string{filepath.Join(bin, "kubectl-runtime"), "status"}},
		{"the same, by kubectl", []string{kubectl, "runtime", "status"}},
	}
	var busy loads
	var table strings.Builder
	table.WriteString("| nodes | command | time | to kubectl | memory |\n|---|---|---|---|---|\n")
	there := 0
	for _, nodes := range []int{100, 1000, 5000} {
		createNodes(t, s, there, nodes)
		there = nodes
		times, memory := make([][]time.Duration, len(ways)), make([][]int64, len(ways))
		for range count {
			busy.note()
			for way, w := range ways {
				cmd := exec.CommandContext(t.Context(), w.args[0], w.args[1:]...)
				cmd.Env = append(os.Environ(), "KUBECONFIG="+config, "PATH="+bin+":"+os.Getenv("PATH"))
				var out, errOut bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &errOut
				began := time.Now()
				if err := cmd.Run(); err != nil {
					t.Fatalf("%s: %v\n%s", w.name, err, errOut.String())
				}
				times[way] = append(times[way], time.Since(began))
				if lines := strings.Count(out.String(), "\n"); lines < nodes {
					t.Fatalf("%s: only %d lines", w.name, lines)
				}
				usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
				if !ok {
					t.Fatal("no resource usage")
				}
				memory[way] = append(memory[way], usage.Maxrss<<10)
			}
		}
		for way, w := range ways {
			fmt.Fprintf(&table, "| %d | %s | %s | %.2f × | %s |\n", nodes, w.name, span(times[way]),
				median(times[way]).Seconds()/median(times[0]).Seconds(), mebibytes(median(memory[way])))
		}
	}
	record(t, "status", busy.over(count)+"\n\n"+table.String())
}

// createNodes creates the nodes with these numbers. The server ends with the test, and they with it.
func createNodes(t *testing.T, s *apiserver.Server, first, end int) {
	t.Helper()
	config := s.Admin()
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(16)
	for n := first; n < end; n++ {
		group.Go(func() error {
			node := bigNode(n)
			created, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			created.Status = node.Status
			_, err = client.CoreV1().Nodes().UpdateStatus(ctx, created, metav1.UpdateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// bigNode is a node as large as kubelets make it.
func bigNode(n int) *corev1.Node {
	runtime := "docker://20.10.24"
	if n%3 == 0 {
		runtime = "containerd://1.6.20"
	}
	return apiserver.Node(fmt.Sprintf("node-%05d", n), runtime, "v1.23.17", func(node *corev1.Node) {
		for image := range 50 {
			digest := strings.Repeat(fmt.Sprintf("%04d", image), 16)
			node.Status.Images = append(node.Status.Images, corev1.ContainerImage{
				Names:     []string{"registry.example.org/team/app@sha256:" + digest, fmt.Sprintf("registry.example.org/team/app:%d", image)},
				SizeBytes: 100 << 20,
			})
		}
	})
}
