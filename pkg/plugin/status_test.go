package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// fleet is a node of every kind that the table tells apart.
func fleet() []*corev1.Node {
	annotate := func(pairs ...string) func(*corev1.Node) {
		return func(n *corev1.Node) {
			for i := 0; i < len(pairs); i += 2 {
				n.Annotations[pairs[i]] = pairs[i+1]
			}
		}
	}
	cordoned := func(n *corev1.Node) { n.Spec.Unschedulable = true }
	label := func(key, value string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Labels[key] = value }
	}
	return []*corev1.Node{
		apiserver.Node("blue-1", "docker://20.10.24+dfsg1", "v1.23.17", label("pool", "blue"), annotate(nodestate.AnnotationCRISocket, "/var/run/dockershim.sock")),
		apiserver.Node("blue-2", "docker://20.10.24+dfsg1", "v1.23.17", label("pool", "blue"), cordoned,
			annotate(nodestate.AnnotationPhase, "draining", nodestate.AnnotationFrom, "docker://20.10.24", nodestate.AnnotationTo, "containerd", nodestate.AnnotationRun, "r1")),
		apiserver.Node("blue-3", "docker://Unknown", "v1.23.17", label("pool", "blue"), func(n *corev1.Node) {
			n.Status.Conditions[0].Status = corev1.ConditionUnknown
		}),
		apiserver.Node("broken", "docker://20.10.24", "v1.23.17", cordoned,
			annotate(nodestate.AnnotationPhase, "broken", nodestate.AnnotationMessage, "kubelet does not start:\x1b[31m see journalctl")),
		apiserver.Node("dockerd", "docker://26.1.5", "v1.37.2"),
		apiserver.Node("moved", "containerd://1.6.20~ds1", "v1.23.17", annotate(nodestate.AnnotationPhase, "done", nodestate.AnnotationRun, "r0")),
		apiserver.Node("old", "containerd://1.7.24", "v1.37.2"),
		apiserver.Node("retry", "docker://20.10.24", "v1.23.17", annotate(nodestate.AnnotationPhase, "rolled-back", nodestate.AnnotationMessage, "smoke-test: no CNI config")),
		{ObjectMeta: metav1.ObjectMeta{Name: "silent"}},
		apiserver.Node("win", "docker://20.10.9", "v1.23.17", func(n *corev1.Node) {
			// kubelets set both
			n.Status.NodeInfo.OperatingSystem, n.Labels[corev1.LabelOSStable] = "windows", "windows"
		}),
	}
}

func TestStatus(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, fleet()...)
	admin := apiserver.Kubeconfig(t, s.Admin())
	columns := filepath.Join(t.TempDir(), "columns")
	if err := os.WriteFile(columns, []byte("NODE RUNTIME\nmetadata.name runtime\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		name string
		args []string
		code int
	}{
		{"table", nil, 0},
		{"wide", []string{"-o", "wide"}, 0},
		{"no-headers", []string{"--no-headers", "-l", "pool=blue"}, 0},
		{"selector", []string{"-l", "pool=blue"}, 0},
		{"field-selector", []string{"--field-selector", "spec.unschedulable=true"}, 0},
		{"nothing-matches", []string{"-l", "pool=red"}, 0},
		{"nothing-matches-json", []string{"-l", "pool=red", "-o", "json"}, 0},
		{"one-node", []string{"moved"}, 0},
		{"named-nodes", []string{"node/old", "moved", "old"}, 0},
		{"unknown-node", []string{"moved", "nowhere"}, 1},
		{"unknown-nodes-json", []string{"moved", "nowhere", "neither", "-o", "json"}, 1},
		{"json", []string{"-o", "json", "blue-1", "blue-2"}, 0},
		{"yaml", []string{"-o", "yaml", "retry", "silent"}, 0},
		{"name", []string{"-o", "name"}, 0},
		{"jsonpath", []string{"-o", `jsonpath={range .items[?(@.runtime=="docker")]}{.metadata.name}{" "}{.advice.id}{"\n"}{end}`}, 0},
		{"custom-columns", []string{"-o", "custom-columns=NODE:.metadata.name,PHASE:.switch.phase", "-l", "pool=blue"}, 0},
		{"custom-columns-no-headers", []string{"-o", "custom-columns=NODE:.metadata.name", "--no-headers", "-l", "pool=blue"}, 0},
		{"custom-columns-file", []string{"-o", "custom-columns-file=" + columns, "-l", "pool=blue"}, 0},
		{"go-template", []string{"--template", `{{range .items}}{{.metadata.name}}{{"\n"}}{{end}}`, "-l", "pool=blue"}, 0},
		{"bad-format", []string{"-o", "xml"}, 1},
		{"bad-jsonpath", []string{"-o", "jsonpath={.items["}, 1},
		{"bad-selector", []string{"-l", "a in b"}, 1},
		{"names-and-selector", []string{"moved", "-l", "pool=blue"}, 1},
		{"other-kind", []string{"pod/x"}, 1},
		{"unknown-flag", []string{"--colour"}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := call(t.Context(), append([]string{"status", "--kubeconfig", admin}, test.args...)...)
			if got.code != test.code {
				t.Errorf("exit code %d, want %d", got.code, test.code)
			}
			text := strings.NewReplacer(admin, "KUBECONFIG", s.URL(), "https://SERVER").Replace(
				"--- stdout ---\n" + got.out + "--- stderr ---\n" + got.errOut)
			golden(t, filepath.Join("status", test.name+".golden"), text)
		})
	}

	t.Run("80 columns without blanks in cells", func(t *testing.T) {
		lines := strings.Split(strings.TrimSpace(call(t.Context(), "status", "--kubeconfig", admin, "-l", "pool!=blue").out), "\n")
		if len(lines) != 8 {
			t.Errorf("%d lines", len(lines))
		}
		for _, line := range lines {
			if got := len(strings.Fields(line)); got != 7 {
				t.Errorf("%d cells in %q", got, line)
			}
		}
		for _, line := range strings.Split(call(t.Context(), "status", "--kubeconfig", admin, "blue-1", "dockerd", "moved", "old").out, "\n") {
			if len(line) > 80 {
				t.Errorf("%d columns: %q", len(line), line)
			}
		}
	})
}

func TestStatusErrors(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("one", "docker://20.10.24", "v1.23.17"))
	nobody := apiserver.Kubeconfig(t, s.User(t, "nobody", apiserver.Allow("", "pods", "list")))
	getter := apiserver.Kubeconfig(t, s.User(t, "getter", apiserver.Allow("", "nodes", "get")))
	lister := apiserver.Kubeconfig(t, s.User(t, "lister", apiserver.Allow("", "nodes", "list")))
	stranger := s.Admin()
	stranger.CertData, stranger.KeyData, stranger.BearerToken = nil, nil, "no-such-token"
	unauthorized := apiserver.Kubeconfig(t, stranger)
	admin := apiserver.Kubeconfig(t, s.Admin())

	for _, test := range []struct {
		name   string
		args   []string
		code   int
		errOut []string
	}{
		{"may not list", []string{"--kubeconfig", nobody}, 1, []string{
			"error: list nodes: ", `User "nobody" cannot list resource "nodes"`, `"list" on "nodes"`, "kubectl auth can-i list nodes --kubeconfig=" + nobody,
		}},
		{"may not get", []string{"--kubeconfig", nobody, "one"}, 1, []string{"error: get nodes one: ", `cannot get resource "nodes"`}},
		{"may get, not list", []string{"--kubeconfig", getter, "one"}, 0, []string{"1 node: 1 docker"}},
		{"may not watch", []string{"--kubeconfig", lister, "-w"}, 1, []string{"watch nodes: ", `"watch" on "nodes"`}},
		{"not logged in", []string{"--kubeconfig", unauthorized}, 1, []string{"list nodes: the server does not accept your credentials"}},
		{"nobody listens", []string{"--kubeconfig", admin, "--server", "https://127.0.0.1:1"}, 1, []string{"list nodes: dial tcp 127.0.0.1:1", "the server is https://127.0.0.1:1"}},
		{"no such context", []string{"--kubeconfig", admin, "--context", "prod"}, 1, []string{`read kubeconfig: context "prod" does not exist`, "--context"}},
		{"no such file", []string{"--kubeconfig", "/nonexistent"}, 1, []string{"read kubeconfig: ", "/nonexistent"}},
		{"server is another version", []string{"--kubeconfig", admin, "--match-server-version"}, map[bool]int{true: 0, false: 1}[s.Version == "1.37"], nil},
		{"unknown node with --context", []string{"--kubeconfig", admin, "--context", "test", "two"}, 1, []string{
			`error: node "two" not found`, "`kubectl get nodes --kubeconfig=" + admin + " --context=test` lists the nodes",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			got := call(ctx, append([]string{"status"}, test.args...)...)
			if got.code != test.code {
				t.Errorf("exit code %d, want %d\n%s", got.code, test.code, got.errOut)
			}
			for _, want := range test.errOut {
				if !strings.Contains(got.errOut, want) {
					t.Errorf("the error lacks %q:\n%s", want, got.errOut)
				}
			}
			if n := strings.Count(got.errOut, "error:"); test.code != 0 && n != 1 {
				t.Errorf("the error is printed %d times:\n%s", n, got.errOut)
			}
		})
	}

	t.Run("json object whatever failed", func(t *testing.T) {
		got := call(t.Context(), "status", "--kubeconfig", nobody, "-o", "json")
		var list v1alpha1.NodeRuntimeList
		if err := json.Unmarshal([]byte(got.out), &list); err != nil {
			t.Fatalf("%v:\n%s", err, got.out)
		}
		if list.Kind != "NodeRuntimeList" || list.Items == nil || len(list.Errors) != 1 || got.code != 1 {
			t.Errorf("exit code %d, list %+v", got.code, list)
		}
	})
}

// TestStatusChunks has more nodes than one request lists.
func TestStatusChunks(t *testing.T) {
	s := server.Get(t)
	const count = 600
	nodes := make([]*corev1.Node, count)
	for i := range nodes {
		nodes[i] = apiserver.Node(fmt.Sprintf("chunk-%03d", i), "docker://20.10.24", "v1.23.17")
	}
	s.CreateNodes(t, nodes...)
	admin := apiserver.Kubeconfig(t, s.Admin())

	factory := cli.NewFactory(genericiooptions.NewTestIOStreamsDiscard(), "test")
	*factory.Flags.KubeConfig = admin
	requests := countRequests(factory)
	client, err := factory.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	found, err := cli.FindNodes(t.Context(), factory, client, cli.NodeSelection{})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != count || found[0].Name != "chunk-000" || found[count-1].Name != "chunk-599" {
		t.Errorf("%d nodes", len(found))
	}
	got := requests()
	if len(got) != 2 || !strings.Contains(got[0], "limit=500") || !strings.Contains(got[1], "continue=") {
		t.Errorf("requests: %q", got)
	}

	out := call(t.Context(), "status", "--kubeconfig", admin)
	if lines := strings.Count(out.out, "\n"); lines != count+1 || !strings.Contains(out.errOut, "600 nodes: 600 docker") {
		t.Errorf("%d lines\n%s", lines, out.errOut)
	}
}

func TestStatusWatch(t *testing.T) {
	s := server.Get(t)
	s.CreateNodes(t, apiserver.Node("watch-1", "docker://20.10.24", "v1.23.17"), apiserver.Node("watch-2", "docker://20.10.24", "v1.23.17"))
	admin := apiserver.Kubeconfig(t, s.Admin())

	ctx, cancel := context.WithCancelCause(t.Context())
	var out, errOut syncBuffer
	ended := make(chan int, 1)
	go func() {
		ended <- Run(ctx, Invocation{
			Name: "kubectl-runtime", Args: []string{"status", "--kubeconfig", admin, "-w"}, Version: "test",
			Streams: genericiooptions.IOStreams{Out: &out, ErrOut: &errOut},
		})
	}()
	t.Cleanup(func() { cancel(nil) })

	waitLines := func(count int) []string {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			if len(lines) >= count {
				return lines
			}
			select {
			case code := <-ended:
				t.Fatalf("ended with %d:\n%s%s", code, out.String(), errOut.String())
			case <-deadline:
				t.Fatalf("%d lines, want %d:\n%s%s", len(lines), count, out.String(), errOut.String())
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	waitLines(3)

	patch := func(name, subresource, patch string) {
		t.Helper()
		var sub []string
		if subresource != "" {
			sub = []string{subresource}
		}
		if _, err := s.Client().CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, sub...); err != nil {
			t.Fatal(err)
		}
	}
	// A change that no column shows prints nothing.
	patch("watch-1", "", `{"metadata":{"labels":{"x":"y"}}}`)
	patch("watch-1", "", `{"metadata":{"annotations":{"kubectl-runtime.dev/phase":"cutover"}}}`)
	waitLines(4)
	patch("watch-1", "status", `{"status":{"nodeInfo":{"containerRuntimeVersion":"containerd://1.6.20"}}}`)
	waitLines(5)
	if err := s.Client().CoreV1().Nodes().Delete(t.Context(), "watch-2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitLines(6)

	cancel(&cli.SignalError{Signal: os.Interrupt})
	select {
	case code := <-ended:
		if code != 130 {
			t.Errorf("exit code %d after an interrupt", code)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("does not end after an interrupt")
	}
	golden(t, "status/watch.golden", "--- stdout ---\n"+out.String()+"--- stderr ---\n"+errOut.String())
}
