// Package apiserver runs a real etcd and a real kube-apiserver for tests, on loopback ports with certificates of their own. There
// is no kubelet, no scheduler and no controller: pods stay Pending and objects' status is what a test writes there.
//
// The binaries are those of the lab, built by test/lab/build/build.sh (`make api` does it). Without them a test is skipped with
// the reason; with CI=true in the environment it fails. A test binary shares one server:
//
//	var server apiserver.Shared
//
//	func TestMain(m *testing.M) { os.Exit(server.Main(m)) }
//
//	func TestX(t *testing.T) { s := server.Get(t); … }
//
// KUBECTL_RUNTIME_TEST_KUBERNETES chooses the version: one of Versions, the newest by default.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// versionVariable names the environment variable that chooses the API server's minor version.
const versionVariable = "KUBECTL_RUNTIME_TEST_KUBERNETES"

// release is a version that tests can run against.
type release struct {
	version string
	build   string // folder of test/lab/build
	args    []string
}

// noInsecurePort is for servers up to 1.19, which would listen on port 8080, too.
const noInsecurePort = "--insecure-port=0"

// releases are the versions, the oldest first.
var releases = []release{
	{version: "1.17", build: "kubernetes-1.17", args: []string{noInsecurePort}}, // the oldest that is supported
	{version: "1.20", build: "kubernetes-1.20"},                                 // the last without CronJobs, budgets and slices of v1
	{version: "1.23", build: "kubernetes-1.23-control-plane"},                   // the first with Pod Security, beside PodSecurityPolicy
	{version: "1.24", build: "kubernetes-1.24"},                                 // over the lab's nodes with dockershim
	{version: "1.37", build: "kubernetes-1.37"},
}

// Versions are the versions that tests can run against, "1.37", the oldest first.
func Versions() []string {
	var versions []string
	for _, r := range releases {
		versions = append(versions, r.version)
	}
	return versions
}

// Before reports whether a version, "1.37", is older than another.
func Before(version, other string) bool {
	minor := func(v string) int {
		n, _ := strconv.Atoi(strings.TrimPrefix(v, "1.")) // releases has none other
		return n
	}
	return minor(version) < minor(other)
}

// Oldest and Newest are the first and the last of Versions.
func Oldest() string { return releases[0].version }

// Newest is the default.
func Newest() string { return releases[len(releases)-1].version }

const (
	startTimeout = 3 * time.Minute // a machine that builds something beside it is slow
	stopTimeout  = 20 * time.Second
	// startAttempts: a port that was free a moment ago may be taken.
	startAttempts = 3
)

// Server is a running API server with its etcd.
type Server struct {
	// Version is the Kubernetes minor version, "1.37".
	Version string

	dir       string
	url       string
	pki       *pki
	admin     *rest.Config
	client    kubernetes.Interface
	processes []*process
}

// Shared is one server for all tests of a binary, started by the first that needs it. The zero value is ready.
type Shared struct {
	once   sync.Once
	start  func() (*Server, error) // nil is Start
	server *Server
	err    error
}

// Main runs the tests and then stops the server. It returns the exit code.
func (s *Shared) Main(m *testing.M) int {
	code := m.Run()
	if s.server != nil {
		if err := s.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return max(code, 1)
		}
	}
	return code
}

// Get starts the server, or returns the one that runs. It skips the test under -short and where the binaries are missing.
func (s *Shared) Get(tb testing.TB) *Server {
	tb.Helper()
	if testing.Short() {
		tb.Skip("SKIPPED: -short; this test needs a real API server: run `make api`")
	}
	s.once.Do(func() {
		if s.start == nil {
			s.start = Start
		}
		s.server, s.err = s.start()
	})
	var missing *MissingError
	switch {
	case errors.As(s.err, &missing) && os.Getenv("CI") != "true":
		tb.Skipf("SKIPPED: %v", s.err)
	case s.err != nil:
		tb.Fatal(s.err)
	}
	return s.server
}

// MissingError says that a binary is not built.
type MissingError struct{ Name, Path string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("no real API server to test against: %s is not built (looked in %s): run `make api`, or test/lab/build/build.sh %s", e.Name, e.Path, e.Name)
}

// Start runs etcd and an API server of the version that the environment chooses, and waits until it is ready. The caller stops it.
func Start() (*Server, error) { return start(Version()) }

// Version is the minor version that the environment chooses, "1.37".
func Version() string {
	if version := os.Getenv(versionVariable); version != "" {
		return version
	}
	return Newest()
}

// Own starts a server for one test, which is stopped when that ends, with further arguments of kube-apiserver. It skips or fails as Shared.Get does.
func Own(tb testing.TB, version string, args ...string) *Server {
	tb.Helper()
	shared := Shared{start: func() (*Server, error) { return start(version, args...) }}
	s := shared.Get(tb)
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func start(version string, args ...string) (*Server, error) {
	etcd, err := binary("etcd", "etcd")
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(releases, func(r release) bool { return r.version == version })
	if i < 0 {
		return nil, fmt.Errorf("start API server %s: the versions are %s", version, strings.Join(Versions(), ", "))
	}
	kubernetesBinary, err := binary(releases[i].build, releases[i].build)
	if err != nil {
		return nil, err
	}
	args = slices.Concat(releases[i].args, args)
	for attempt := 1; ; attempt++ {
		s, err := startOnce(version, etcd, kubernetesBinary, args)
		if err == nil {
			return s, nil
		}
		if attempt == startAttempts || !errors.Is(err, errPortTaken) && !errors.Is(err, errSlowEtcd) {
			return nil, fmt.Errorf("start API server %s: %w", version, err)
		}
	}
}

// errPortTaken is a failure that another port may cure.
var errPortTaken = errors.New("address already in use")

// errSlowEtcd is a failure on a busy machine: the API server gives etcd 20 s, and then ends.
var errSlowEtcd = errors.New("etcd grpc connection not ready")

func startOnce(version, etcd, kubernetesBinary string, args []string) (server *Server, err error) {
	dir, err := os.MkdirTemp("", "kubectl-runtime-apiserver-")
	if err != nil {
		return nil, err
	}
	s := &Server{Version: version, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	if s.pki, err = newPKI(dir); err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	etcdURL := "http://127.0.0.1:" + ports[0]
	if err := s.run("etcd", etcd,
		"--data-dir="+filepath.Join(dir, "etcd"),
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls=http://127.0.0.1:"+ports[1], "--initial-advertise-peer-urls=http://127.0.0.1:"+ports[1],
		"--initial-cluster=default=http://127.0.0.1:"+ports[1], "--unsafe-no-fsync", "--log-level=warn",
	); err != nil {
		return nil, err
	}
	// The binary goes by the name that it is called by.
	link := filepath.Join(dir, "kube-apiserver")
	if err := os.Symlink(kubernetesBinary, link); err != nil {
		return nil, err
	}
	s.url = "https://127.0.0.1:" + ports[2]
	if err := s.run("kube-apiserver", link, append([]string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + ports[2], "--endpoint-reconciler-type=none",
		"--tls-cert-file=" + s.pki.path("server.crt"), "--tls-private-key-file=" + s.pki.path("server.key"),
		"--client-ca-file=" + s.pki.path("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + s.pki.path("server.key"), "--service-account-signing-key-file=" + s.pki.path("server.key"),
		"--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC", "--allow-privileged=true",
		"--disable-admission-plugins=ServiceAccount", // no controller makes the accounts that it asks for
		"--max-requests-inflight=1000", "--max-mutating-requests-inflight=500",
	}, args...)...); err != nil {
		return nil, err
	}
	if s.admin, err = s.config("admin", "system:masters"); err != nil {
		return nil, err
	}
	if s.client, err = kubernetes.NewForConfig(s.admin); err != nil {
		return nil, err
	}
	return s, s.waitReady()
}

// waitReady waits until every check of /readyz passes, which includes RBAC's and the priority classes' first objects.
func (s *Server) waitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	var last error
	for {
		last = s.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		if last == nil {
			return nil
		}
		for _, p := range s.processes {
			select {
			case <-p.exited:
				return p.failure()
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w", startTimeout, last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Stop ends both processes and removes their files. It may be called more than once.
func (s *Server) Stop() error {
	var errs []error
	for i := len(s.processes) - 1; i >= 0; i-- {
		errs = append(errs, s.processes[i].stop())
	}
	s.processes = nil
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// process is a child with its log.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

// run starts a child that dies with this process, even if that is killed.
func (s *Server) run(name, path string, args ...string) error {
	logPath := filepath.Join(s.dir, name+".log")
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	cmd.SysProcAttr = diesWithParent()
	p := &process{name: name, cmd: cmd, log: logPath, exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends, so this one is kept until the child has.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(p.exited)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	s.processes = append(s.processes, p)
	return nil
}

// failure is why a process ended by itself, with the end of its log.
func (p *process) failure() error {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Errorf("%s ended: %s: %w", p.name, p.cmd.ProcessState, err)
	}
	const tail = 4 << 10
	if strings.Contains(string(text), errPortTaken.Error()) {
		return fmt.Errorf("%s ended: %w", p.name, errPortTaken)
	}
	if strings.Contains(string(text), errSlowEtcd.Error()) {
		return fmt.Errorf("%s ended: %w", p.name, errSlowEtcd)
	}
	return fmt.Errorf("%s ended: %s\n%s", p.name, p.cmd.ProcessState, text[max(0, len(text)-tail):])
}

func (p *process) stop() error {
	// An error means that it has ended already.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return nil
	case <-time.After(stopTimeout):
	}
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	<-p.exited
	return nil
}

// binary is the path of a built component.
func binary(component, file string) (string, error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("find build.sh: no caller information")
	}
	script := filepath.Join(filepath.Dir(here), "..", "lab", "build", "build.sh")
	out, err := exec.Command(script, "--path", component).Output()
	if err != nil {
		return "", fmt.Errorf("%s --path %s: %w", script, component, err)
	}
	dir := strings.TrimSpace(string(out))
	if _, err := os.Stat(filepath.Join(dir, ".complete")); err != nil {
		return "", &MissingError{Name: component, Path: dir}
	}
	return filepath.Join(dir, file), nil
}

// freePorts are loopback ports that nothing listened on a moment ago.
func freePorts(count int) ([]string, error) {
	var ports []string
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		ports = append(ports, strconv.Itoa(listener.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}

// Transport wraps a config's transport, for tests that watch or break requests.
func Transport(config *rest.Config, wrap func(http.RoundTripper) http.RoundTripper) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(wrap)
	return config
}
