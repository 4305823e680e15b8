package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// tryDeadline bounds the start of the throw-away daemon; on an idle machine it takes about a second.
	tryDeadline = 20 * time.Second
	// stopGrace is what the daemon gets to end after SIGTERM.
	stopGrace = 5 * time.Second
	tryPrefix = ".kubectl-runtime-try-"
)

// TryError tells why a throw-away daemon did not serve CRI.
type TryError struct {
	// Reason is one sentence, Why the daemon's own last error, if it logged one.
	Reason, Why string
	// Lines are the daemon's own errors, or the last it said.
	Lines []string
}

func (e *TryError) Error() string {
	text := "containerd refuses the config: " + e.Reason
	if e.Why != "" {
		text += ": " + e.Why
	}
	return text
}

// Detail returns the daemon's lines.
func (e *TryError) Detail() string { return strings.Join(e.Lines, "\n") }

// Try starts a throw-away daemon of binary with config (as Render returns it, for the file at path) and returns nil once it answers CRI's
// Version call: neither a running containerd nor `containerd config dump` tells whether CRI loads. What the config imports is read, too.
// The daemon has a root, a state directory and sockets of its own, on the file system
// of the root that the config names, since that decides which snapshotters work. When Try returns the daemon has ended and
// its directories are gone. A config that containerd does not take is a *TryError.
func Try(ctx context.Context, binary, path string, config []byte) (err error) {
	imported, err := ReadImports(path, config)
	if err != nil {
		return err
	}
	dir, err := tryDir(config, imported)
	if err != nil {
		return fmt.Errorf("try containerd config: %w", err)
	}
	defer func() {
		if cleanErr := removeTryDir(dir); cleanErr != nil {
			err = errors.Join(err, fmt.Errorf("try containerd config: %w", cleanErr))
		}
	}()
	if err := writeTryConfig(dir, config, imported); err != nil {
		return fmt.Errorf("try containerd config: %w", err)
	}
	daemon, err := startTry(binary, dir)
	if err != nil {
		return fmt.Errorf("try containerd config: %w", err)
	}
	defer daemon.stop()

	ctx, cancel := context.WithTimeout(ctx, tryDeadline)
	defer cancel()
	return daemon.waitForCRI(ctx, filepath.Join(dir, trySocket))
}

// tryDir makes the daemon's directory and removes those of processes that died before they could.
func tryDir(config []byte, imported []Imported) (string, error) {
	layout, err := ReadLayout(config, imported...)
	if err != nil {
		return "", err
	}
	base := filepath.Dir(filepath.Clean(layout.Root))
	// A path in a socket's address has at most 107 bytes.
	if info, err := os.Stat(base); err != nil || !info.IsDir() || len(base) > 50 {
		base = os.TempDir()
	}
	stale, _ := filepath.Glob(filepath.Join(base, tryPrefix+"*"))
	for _, dir := range stale {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), tryPrefix), "-")
		if _, err := os.Stat(filepath.Join("/proc", pid)); errors.Is(err, fs.ErrNotExist) {
			if err := removeTryDir(dir); err != nil {
				return "", err
			}
		}
	}
	return os.MkdirTemp(base, tryPrefix+strconv.Itoa(os.Getpid())+"-")
}

// removeTryDir unmounts what is mounted below dir, deepest first, and removes it.
func removeTryDir(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	slices.Sort(points)
	slices.Reverse(points)
	for _, point := range points {
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return os.RemoveAll(dir)
}

// daemon is a running throw-away containerd.
type daemon struct {
	cmd    *exec.Cmd
	log    *bytes.Buffer // complete once ended is closed
	ended  chan struct{}
	result error
}

// startTry starts the daemon. It dies with this process: PR_SET_PDEATHSIG follows the thread that forked, so that thread is kept.
func startTry(binary, dir string) (*daemon, error) {
	cmd := exec.Command(binary, //nolint:noctx // stopped with SIGTERM first, so that it unmounts what it mounted
		"--config", filepath.Join(dir, "config.toml"),
		"--root", filepath.Join(dir, "root"),
		"--state", filepath.Join(dir, "state"),
		"--address", filepath.Join(dir, trySocket))
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	for _, variable := range os.Environ() {
		// It would tell systemd that the agent's own unit is ready.
		if !strings.HasPrefix(variable, "NOTIFY_SOCKET=") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	d := &daemon{cmd: cmd, log: &bytes.Buffer{}, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = d.log, d.log
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			d.result = cmd.Wait()
			close(d.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	return d, nil
}

func (d *daemon) stop() {
	select {
	case <-d.ended:
		return
	default:
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(stopGrace):
		_ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
		<-d.ended
	}
}

// waitForCRI polls until CRI answers, the daemon ends, or it serves everything but CRI.
func (d *daemon) waitForCRI(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("try containerd config: %w", err)
	}
	defer func() { _ = conn.Close() }()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		// The socket is looked for first: a failed connection would make gRPC wait a second before the next.
		if _, err := os.Stat(socket); err == nil {
			_, err := client.Version(ctx, &runtimeapi.VersionRequest{})
			if err == nil {
				return nil
			}
			if status.Code(err) == codes.Unimplemented {
				d.stop()
				return d.failure("the daemon runs, but its CRI plugin did not load")
			}
		}
		select {
		case <-d.ended:
			return d.failure(fmt.Sprintf("the daemon ended (%v)", d.result))
		case <-ctx.Done():
			d.stop()
			return d.failure(fmt.Sprintf("CRI did not answer in time (%v)", context.Cause(ctx)))
		case <-tick.C:
		}
	}
}

// maxLines bounds the lines of a TryError.
const maxLines = 10

// failure picks from the log, which has ended, what tells why.
func (d *daemon) failure(reason string) error {
	var telling, all []string
	for line := range strings.Lines(d.log.String()) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		all = append(all, line)
		switch {
		case strings.Contains(line, "skip loading plugin"), strings.Contains(line, "skip plugin"):
			// file systems that this host does not have
		case strings.Contains(line, "level=error"), strings.Contains(line, "level=fatal"),
			strings.Contains(line, "failed to load"), strings.HasPrefix(line, "containerd: "):
			telling = append(telling, line)
		}
	}
	why := ""
	if n := len(telling); n > 0 {
		why = telling[n-1]
	} else {
		telling = all
	}
	return &TryError{Reason: reason, Why: why, Lines: telling[max(0, len(telling)-maxLines):]}
}
