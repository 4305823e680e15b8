package apiserver

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

func TestMain(m *testing.M) { os.Exit(new(Shared).Main(m)) }

// TestServer starts a server of its own, since it also stops it.
func TestServer(t *testing.T) {
	var shared Shared
	s := shared.Get(t)
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	if !t.Run("API", func(t *testing.T) { testAPI(t, s) }) {
		return
	}

	processes := s.processes
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if p.cmd.ProcessState == nil {
			t.Errorf("%s still runs", p.name)
		}
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files are left in %s: %v", s.dir, err)
	}
	if conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.URL(), "https://"), 5*time.Second); err == nil {
		_ = conn.Close()
		t.Error("something still listens")
	}
}

// testAPI is a subtest, so that what it creates is deleted before the server stops.
func testAPI(t *testing.T, s *Server) {
	ctx := t.Context()

	version, err := s.Client().Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(version.GitVersion, "v"+s.Version+".") {
		t.Errorf("server is %s, want %s", version.GitVersion, s.Version)
	}

	s.CreateNodes(t, Node("one", "docker://20.10.24", "v1.23.17"))
	node, err := s.Client().CoreV1().Nodes().Get(ctx, "one", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if node.Status.NodeInfo.ContainerRuntimeVersion != "docker://20.10.24" || len(node.Spec.Taints) != 0 {
		t.Errorf("node: runtime %q, taints %v", node.Status.NodeInfo.ContainerRuntimeVersion, node.Spec.Taints)
	}

	reader, err := kubernetes.NewForConfig(s.User(t, "reader", Allow("", "nodes", "get")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.CoreV1().Nodes().Get(ctx, "one", metav1.GetOptions{}); err != nil {
		t.Errorf("a user with get on nodes: %v", err)
	}
	if _, err := reader.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a user without list on nodes: %v", err)
	}
	if list, err := s.Client().SchedulingV1().PriorityClasses().List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) < 2 {
		t.Errorf("the system's priority classes are not there: %v", err)
	}
}

func TestMissingBinaryIsNamed(t *testing.T) {
	t.Setenv("KUBECTL_RUNTIME_CACHE", filepath.Join(t.TempDir(), "empty"))
	_, err := Start()
	var missing *MissingError
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "build.sh etcd") {
		t.Errorf("error %v", err)
	}
}

func TestFailureShowsTheLog(t *testing.T) {
	s := &Server{dir: t.TempDir()}
	if err := s.run("sh", "/bin/sh", "-c", "echo what went wrong; exit 3"); err != nil {
		t.Fatal(err)
	}
	<-s.processes[0].exited
	if err := s.processes[0].failure(); !strings.Contains(err.Error(), "what went wrong") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v", err)
	}
}
