package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// StandIn answers HTTP at the socket of a daemon that is down, until end is called. It refuses where anybody listens. Afterwards there is
// what was there before: nothing, or the file that a daemon leaves when it stops. An agent that is killed in between leaves a socket
// that nobody listens at, as that daemon did, and the next StandIn puts the old one back.
func StandIn(path string, handler http.Handler) (end func(), err error) {
	aside, fresh := path+".kubectl-runtime-aside", path+".kubectl-runtime"
	if !Absent(aside) {
		if err := os.Rename(aside, path); err != nil {
			return nil, fmt.Errorf("stand in at socket %s: %w", path, err)
		}
	}
	_ = unix.Unlink(fresh)
	hadOne, err := isDeadSocket(path)
	if err != nil {
		return nil, fmt.Errorf("stand in at socket %s: %w", path, err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("stand in at socket %s: %w", path, err)
	}
	listener.SetUnlinkOnClose(false)
	own, err := os.Lstat(fresh)
	if err == nil {
		err = os.Chmod(fresh, 0o600)
	}
	if err == nil && hadOne {
		err = os.Link(path, aside)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		_ = listener.Close()
		_, _ = unix.Unlink(fresh), unix.Unlink(aside)
		return nil, fmt.Errorf("stand in at socket %s: %w", path, err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(listener) }()
	return func() {
		_ = server.Close()
		if now, err := os.Lstat(path); err != nil || !os.SameFile(own, now) {
			_ = unix.Unlink(aside) // somebody has put another one in its place
			return
		}
		if hadOne {
			_ = os.Rename(aside, path)
		} else {
			_ = unix.Unlink(path)
		}
	}, nil
}

// isDeadSocket reports whether there is a socket that nobody listens at. Anything else but nothing at all is an error.
func isDeadSocket(path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, errors.New("it is no socket")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return false, errors.New("somebody listens at it")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return false, err
	}
	return true, nil
}
