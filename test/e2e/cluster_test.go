// Package e2e switches real nodes of a lab cluster as a user would: through a stock kubectl that finds the plugin on PATH.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

const (
	agentImage = "lab.local/runtime-agent:e2e"
	// agentCNI asks for a pod network that needs its own agent on cri-dockerd, too.
	agentCNI = "KUBECTL_RUNTIME_AGENT_CNI"
)

// cluster is a lab cluster with the tools that a user has.
type cluster struct {
	*lab.Lab
	t   *testing.T
	env []string
	// dir is where the user stands.
	dir string
	// plan is what testPlan found.
	plan *planned
}

// result is what a command printed and how it ended.
type result struct {
	stdout, stderr string
	code           int
}

// up starts a lab cluster that ends with the test.
func up(t *testing.T, profile string, nodes int) *cluster {
	t.Helper()
	return upWith(t, lab.Options{Profile: profile, Nodes: nodes})
}

// hasAgentCNI reports whether the pods' network of a profile needs its own agent on the node, as Cilium's does.
func hasAgentCNI(profile string) bool { return profile == lab.Dockershim || os.Getenv(agentCNI) != "" }

func upWith(t *testing.T, options lab.Options) *cluster {
	t.Helper()
	options.AgentCNI = options.AgentCNI || hasAgentCNI(options.Profile)
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: lab nodes need root")
	}
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "agent-rootfs.tar")); err != nil {
		t.Fatalf("no build to test: %v: run `make build lab`", err)
	}
	started := time.Now()
	l, err := lab.Up(t.Context(), options)
	if err != nil {
		t.Fatalf("lab up: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Errorf("lab down: %v", err)
		}
	})
	t.Logf("lab up in %s", time.Since(started).Round(time.Second))
	c := &cluster{Lab: l, t: t, dir: t.TempDir()}
	path := bin + string(os.PathListSeparator) + l.BinDir() + string(os.PathListSeparator) + os.Getenv("PATH")
	c.env = append(os.Environ(), "KUBECONFIG="+l.Kubeconfig(), "PATH="+path)
	for _, node := range l.Nodes() {
		if err := l.LoadImage(t.Context(), node, filepath.Join(bin, "agent-rootfs.tar"), agentImage); err != nil {
			t.Fatalf("load agent image: %v", err)
		}
	}
	return c
}

// run runs kubectl with args and returns how it ended, whatever that is.
func (c *cluster) run(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	return c.start(ctx, t, args...)
}

// start is run with SIGKILL for kubectl when ctx ends.
func (c *cluster) start(ctx context.Context, t *testing.T, args ...string) result {
	t.Helper()
	cmd := exec.CommandContext(ctx, "kubectl", args...)
	cmd.Path = c.lookPath("kubectl")
	cmd.Env, cmd.Dir = c.env, c.dir
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	r := result{stdout: out.String(), stderr: errOut.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.code = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return r
}

func (c *cluster) lookPath(name string) string {
	return filepath.Join(c.BinDir(), name)
}

// kubectl runs kubectl and fails the test if it fails.
func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(t, args...)
	if r.code != 0 {
		t.Fatalf("kubectl %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// runtime runs `kubectl runtime args` and checks its exit code.
func (c *cluster) runtime(t *testing.T, wantCode int, args ...string) result {
	t.Helper()
	r := c.run(t, append([]string{"runtime"}, args...)...)
	t.Logf("$ kubectl runtime %s\n%s%s[exit %d]", strings.Join(args, " "), r.stderr, r.stdout, r.code)
	if r.code != wantCode {
		c.diagnose(t)
		t.Fatalf("kubectl runtime %s: exit %d, want %d", strings.Join(args, " "), r.code, wantCode)
	}
	return r
}

func (c *cluster) switchNode(t *testing.T, wantCode int, node string, more ...string) result {
	t.Helper()
	return c.runtime(t, wantCode, append([]string{"switch", node, "--yes", "--image", agentImage}, more...)...)
}

// diagnose logs what tells why a switch went wrong.
func (c *cluster) diagnose(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"get", "nodes", "-o", "wide"}, {"get", "pods", "-A", "-o", "wide"}, {"-n", "kubectl-runtime", "get", "events"},
	} {
		r := c.run(t, args...)
		t.Logf("$ kubectl %s\n%s%s", strings.Join(args, " "), r.stdout, r.stderr)
	}
	for _, node := range c.Nodes() {
		out, err := c.Exec(t.Context(), node, "sh", "-c",
			"journalctl -u kubectl-runtime -n 60 --no-pager; journalctl -u kubelet -n 40 --no-pager; tail -n 20 /var/lib/kubectl-runtime/current/journal.jsonl")
		t.Logf("%s: %v\n%s", node, err, out)
	}
}

// exec runs a shell line on a node and returns its trimmed output.
func (c *cluster) exec(t *testing.T, node, line string) string {
	t.Helper()
	out, err := c.Exec(t.Context(), node, "sh", "-c", line)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", node, line, err, out)
	}
	return strings.TrimSpace(out)
}

// node is what the tests look at in a Node.
type node struct {
	Spec struct {
		Unschedulable bool `json:"unschedulable"`
	} `json:"spec"`
	Metadata struct {
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Status struct {
		Conditions []struct{ Type, Status string }          `json:"conditions"`
		NodeInfo   struct{ ContainerRuntimeVersion string } `json:"nodeInfo"`
	} `json:"status"`
}

func (n node) ready() bool {
	for _, condition := range n.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True"
		}
	}
	return false
}

func (c *cluster) node(t *testing.T, name string) node {
	t.Helper()
	var n node
	if err := json.Unmarshal([]byte(c.kubectl(t, "get", "node", name, "-o", "json")), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually polls until check returns "" and fails with its last word after the deadline. It asks less often the longer it takes, since
// each kubectl costs the machine a tenth of a second that the nodes could use.
func eventually(t *testing.T, deadline time.Duration, check func() string) {
	t.Helper()
	end := time.Now().Add(deadline)
	for wait := 200 * time.Millisecond; ; wait = min(wait*3/2, 2*time.Second) {
		last := check()
		if last == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("still after %s: %s", deadline, last)
		}
		time.Sleep(wait)
	}
}

// watch records what kubectl prints, line by line, until the returned function is called.
func (c *cluster) watch(t *testing.T, args ...string) func() []string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, c.lookPath("kubectl"), args...)
	cmd.Env = c.env
	var mu sync.Mutex
	var out bytes.Buffer
	cmd.Stdout = writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return out.Write(p)
	})
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	return func() []string {
		cancel()
		_ = cmd.Wait() // ended by us
		mu.Lock()
		defer mu.Unlock()
		return strings.Fields(out.String())
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
