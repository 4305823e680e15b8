// Package hostile plays nodes that lie against every command of the plugin, the built program, with a real API server: whatever a node says, a
// call ends by itself, within bounds of output and memory, with the exit code that it should have, and leaves nothing on the operator's
// machine but evidence, and other nodes as they were.
package hostile

import (
	"context"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

var server apiserver.Shared

// TestMain runs many tests at once unless -parallel says otherwise: they wait for polls and timeouts most of their time.
func TestMain(m *testing.M) {
	flag.Parse()
	if parallel := flag.Lookup("test.parallel").Value; parallel.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		if err := parallel.Set("8"); err != nil {
			panic(err)
		}
	}
	code := server.Main(m)
	if path, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// lie is what a node does, and what becomes of the commands on it, in order.
type lie struct {
	name string
	// switched: the node is on containerd, as a switch has left it.
	switched bool
	// node changes what the Node says, set what kubelet and agent do.
	node func(*corev1.Node)
	set  func(h *hollow.Node)
	// reads: all commands that only read are called first. They succeed.
	reads bool
	calls []call
}

// pause is between two looks of a node at its pods: many play at once, on two processors.
const pause = 250 * time.Millisecond

// The commands that change a node, the look at its host, and what shows later what was kept of a lie. NODE becomes the node's name.
var (
	doStatus   = words("status NODE")
	doPlan     = words("plan NODE -o json")
	doSwitch   = words("switch NODE --yes --soak=0s")
	doRollback = words("rollback NODE --yes --soak=0s -o json")
)

// reading are the commands that only read.
var reading = [][]string{
	words("status"), doStatus, words("status NODE -o json"), words("status NODE -o yaml"), words("status -o wide"), words("status -o name"),
	words("status NODE -o custom-columns=A:.runtimeVersion,B:.switch.message,C:.advice.text"), words("status NODE -o jsonpath={.items[*]}"),
	words("plan NODE --api-only --force"), words("plan NODE --api-only --force -o yaml"), words("version"), words("__complete status lie"),
}

func words(text string) []string { return strings.Fields(text) }

// TestHostileNode has a row for each lie.
func TestHostileNode(t *testing.T) {
	s := server.Get(t)
	bystanders(t, s)
	before := others(t, s)
	t.Run("lies", func(t *testing.T) {
		for _, l := range lies() {
			t.Run(l.name, func(t *testing.T) {
				t.Parallel()
				l.tell(t, s)
			})
		}
	})
	if after := others(t, s); !maps.Equal(before, after) {
		t.Errorf("other nodes were changed: %v, before %v", after, before)
	}
	t.Run("uninstall", func(t *testing.T) { uninstalls(t, s) })
}

// uninstalls: a node can keep the plugin from being uninstalled, and no more.
func uninstalls(t *testing.T, s *apiserver.Server) {
	hollow.New(t, s, "lie-last", func(node *corev1.Node) {
		saysWords(node)
		annotate(node, evil)
		node.Annotations[nodestate.Prefix+"x"], node.Annotations[nodestate.AnnotationRun] = evil, evil
	})
	o := newOperator(t, s, "lie-last")
	o.run(call{args: words("uninstall --dry-run"), says: "node/lie-last"})
	h := hollow.New(t, s, "lie-open", func(node *corev1.Node) {
		annotate(node, evil)
		node.Annotations[nodestate.AnnotationPhase] = " draining\n"
	})
	o.run(call{args: words("uninstall --yes"), code: 2, says: "node lie-open: its run is draining"})
	h.UpdateNode(func(node *corev1.Node) { node.Annotations[nodestate.AnnotationPhase] = "done" })
	o.run(call{args: words("uninstall --yes"), says: "node/lie-last"})
}

func (l lie) tell(t *testing.T, s *apiserver.Server) {
	name := "lie-" + l.name
	h := hollow.New(t, s, name, func(node *corev1.Node) {
		if l.switched {
			node.Annotations[nodestate.AnnotationPhase], node.Annotations[nodestate.AnnotationRun] = string(nodestate.StateDone), "r1"
			node.Annotations[nodestate.AnnotationFrom] = hollow.DockerVersion
		}
		if l.node != nil {
			l.node(node)
		}
	})
	if l.switched {
		h.SwitchTo(hollow.ContainerdVersion)
	}
	h.SetPause(pause)
	if l.set != nil {
		l.set(h)
	}
	_ = h.Phases() // locks, so that the kubelet's goroutines see what was set
	o := newOperator(t, s, name)
	var calls []call
	if l.reads {
		for _, args := range reading {
			calls = append(calls, call{args: args})
		}
	}
	calls = append(calls, l.calls...)
	for _, c := range calls {
		c.args = words(strings.ReplaceAll(strings.Join(c.args, " "), "NODE", name))
		o.run(c)
	}
}

// bystanders are nodes that no call names, one on Docker, and one with a run that is over.
func bystanders(t *testing.T, s *apiserver.Server) {
	s.CreateNodes(t,
		apiserver.Node("bystander-1", hollow.DockerVersion, "v1.23.17"),
		apiserver.Node("bystander-2", hollow.ContainerdVersion, "v1.23.17", func(node *corev1.Node) {
			node.Annotations[nodestate.AnnotationPhase], node.Annotations[nodestate.AnnotationRun] = string(nodestate.StateDone), "r2"
		}),
	)
}

// others are the versions of the bystanders, which each write changes.
func others(t *testing.T, s *apiserver.Server) map[string]string {
	t.Helper()
	nodes, err := s.Client().CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, node := range nodes.Items {
		if !strings.HasPrefix(node.Name, "lie-") {
			versions[node.Name] = node.ResourceVersion
		}
	}
	if len(versions) != 2 {
		t.Fatalf("%v", versions)
	}
	return versions
}
