package inspect

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var dockerUnitCheck = check{id: protocol.CheckDockerUnit, needs: []string{protocol.CheckKubelet}, run: checkDockerUnit}

// checkDockerUnit makes sure that the Docker behind the kubelet is the one of docker.service: that unit is what is stopped, held and
// started again. Its process, which tells how Docker was set up, is found by the socket: CentOS 7 calls the program dockerd-current, and a
// script may start it.
func checkDockerUnit(ctx context.Context, i *inspection) error {
	s, err := serviceOf(ctx, i.h, node.DockerUnit)
	if err != nil {
		i.findDaemonErr = err
		return err
	}
	socket := i.DockerSocket
	if socket == "" {
		socket = docker.DefaultSocket
	}
	listener := s.pid // of a Docker behind a TCP port nothing better is known
	if path, ok := strings.CutPrefix(socket, "unix://"); ok {
		if listener, err = listenerOf(ctx, path); err != nil {
			i.findDaemonErr = err
			return err
		}
	}
	i.daemon, i.findDaemonErr = daemonOf(node.Proc, s, listener)
	return expectService(node.Proc, s, socket, listener)
}

// service is what systemd says of a daemon.
type service struct {
	unit, load, active string
	pid                int    // of its main process, 0 if it does not run
	cgroup             string // empty if it does not run
}

func serviceOf(ctx context.Context, h *node.Host, unit string) (service, error) {
	p, err := h.Systemd.Show(ctx, unit, "LoadState", "ActiveState", "MainPID", "ControlGroup")
	if err != nil {
		return service{}, err
	}
	pid, _ := strconv.Atoi(p["MainPID"])
	return service{unit: unit, load: p["LoadState"], active: p["ActiveState"], pid: pid, cgroup: p["ControlGroup"]}, nil
}

// daemonOf reads the process of a service's daemon. systemd hands a socket that it listens at itself, as process 1, to the main process.
func daemonOf(proc string, s service, listener int) (*host.Process, error) {
	pid := listener
	if pid <= 1 {
		pid = s.pid
	}
	if pid == 0 {
		return nil, fmt.Errorf("find the process of %s: it is %s", s.unit, s.active)
	}
	process, err := host.ReadProcess(proc, pid)
	if err != nil {
		return nil, fmt.Errorf("find the process of %s: %w", s.unit, err)
	}
	return &process, nil
}

// listenerOf returns the PID of the process that made a socket listen: the daemon, or systemd where it hands the socket over.
func listenerOf(ctx context.Context, path string) (int, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return 0, fmt.Errorf("find who listens at %s: %w", path, err)
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("find who listens at %s: %w", path, err)
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) {
		peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = peerErr
	}
	if err != nil {
		return 0, fmt.Errorf("find who listens at %s: %w", path, err)
	}
	return int(peer.Pid), nil
}

// expectService refuses a daemon that its unit does not run, such as one that a snap or a person started.
func expectService(proc string, s service, socket string, listener int) error {
	if s.pid > 0 && (listener == s.pid || listener == 1) {
		return nil
	}
	who := fmt.Sprintf("process %d", listener)
	if process, err := host.ReadProcess(proc, listener); err == nil {
		if s.cgroup != "" && s.cgroup != "/" && host.InServiceCgroup(process.Cgroup, s.cgroup) {
			return nil // a daemon behind a script
		}
		if len(process.Args) > 0 {
			who += " (" + strings.Join(process.Args[:min(2, len(process.Args))], " ") + ")"
		}
	}
	state := s.active
	if s.load != "loaded" {
		state = s.load
	}
	is := fmt.Sprintf("%s is %s", s.unit, state)
	if s.pid > 0 {
		is = fmt.Sprintf("the one of %s is process %d", s.unit, s.pid)
	}
	return node.Refuse("have systemd run Docker as "+s.unit+", as its packages do, and restart the kubelet",
		"Docker at %s is not run by the systemd unit %s, which would be stopped: %s listens there, and %s", socket, s.unit, who, is)
}
