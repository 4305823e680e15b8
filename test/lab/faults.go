package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Root is a node's root file system as this machine sees it, with the mounts made on the node while it runs; empty if there is no
// such node. Absolute links in it lead astray.
func (l machines) Root(name string) string {
	n, err := l.node(name)
	if err != nil {
		return ""
	}
	if n.Init.alive() {
		return filepath.Join("/proc", strconv.Itoa(n.Init.PID), "root")
	}
	return n.Root
}

// Signal sends a signal to the processes of a node whose command line match accepts, those in containers with a PID namespace of
// their own left out, and returns how many got it.
func (l machines) Signal(name string, sig syscall.Signal, match func(args []string) bool) (int, error) {
	n, err := l.node(name)
	if err != nil {
		return 0, err
	}
	inside, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(n.Init.PID), "ns/pid"))
	if err != nil || !n.Init.alive() {
		return 0, fmt.Errorf("signal processes of %s: it is powered off", name)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	count := 0
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		var args []string
		for arg := range bytes.SplitSeq(bytes.TrimSuffix(cmdline, []byte{0}), []byte{0}) {
			args = append(args, string(arg))
		}
		if !match(args) {
			continue
		}
		if ns, err := os.Readlink(filepath.Join("/proc", entry.Name(), "ns/pid")); err == nil && ns == inside && syscall.Kill(pid, sig) == nil {
			count++
		}
	}
	return count, nil
}

// StopAPIServer ends the API server at once. Nodes and pods live on; StartAPIServer brings it back with all that it held.
func (l controlPlane) StopAPIServer() error {
	p, ok := l.process(apiServer)
	if !ok {
		return errors.New("stop the API server: it was never started")
	}
	p.kill(syscall.SIGKILL)
	return poll(context.Background(), 10*time.Second, func() error {
		if p.alive() {
			return errors.New("stop the API server: it lives on")
		}
		return nil
	})
}

// StartAPIServer starts the API server again, and waits until it is ready.
func (l controlPlane) StartAPIServer(ctx context.Context) error {
	if p, ok := l.process(apiServer); ok && p.alive() {
		return errors.New("start the API server: it runs")
	}
	for _, c := range components() {
		if c.name == apiServer {
			return l.startComponent(ctx, c)
		}
	}
	return nil
}

// KillAll ends every process of the lab at once, as the end of the container that it runs in would, and leaves all else.
func (l *Lab) KillAll() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.state.Nodes {
		n.Init.kill(syscall.SIGKILL)
		n.Nspawn.kill(syscall.SIGKILL)
	}
	for _, p := range l.state.Processes {
		p.kill(syscall.SIGKILL)
	}
	return poll(context.Background(), 10*time.Second, func() error {
		if l.state.alive() {
			return errors.New("kill the lab: some of it lives on")
		}
		return nil
	})
}
