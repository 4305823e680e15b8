package host

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

// ask returns what is answered at a socket.
func ask(path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", path)
	}}}
	answer, err := client.Get("http://docker/info")
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// deadSocket leaves a socket as a daemon does that systemd has stopped.
func deadSocket(t *testing.T, path string) os.FileInfo {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// only fails unless path is alone in its folder, or the folder is empty where there is to be none.
func only(t *testing.T, path string, there bool) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) > 1 || (len(entries) == 1) != there || there && entries[0].Name() != filepath.Base(path) {
		t.Errorf("left: %v %v", entries, err)
	}
}

// TestStandIn: it answers, and leaves what was there before, also when an agent was killed in the middle of it.
func TestStandIn(t *testing.T) {
	for _, name := range []string{"nothing", "dead", "killed"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "docker.sock")
			var before os.FileInfo
			if name != "nothing" {
				before = deadSocket(t, path)
			}
			if name == "killed" {
				if err := os.Rename(path, path+".kubectl-runtime-aside"); err != nil {
					t.Fatal(err)
				}
				deadSocket(t, path)
				deadSocket(t, path+".kubectl-runtime")
			}
			end, err := StandIn(path, http.HandlerFunc(hello))
			if err != nil {
				t.Fatal(err)
			}
			if body, err := ask(path); body != "hello" || err != nil {
				t.Errorf("answer %q, %v", body, err)
			}
			if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v: others than root could ask", info.Mode(), err)
			}
			end()
			if _, err := ask(path); err == nil {
				t.Error("it still answers")
			}
			only(t, path, before != nil)
			if before != nil {
				if now, err := os.Lstat(path); err != nil || !os.SameFile(before, now) {
					t.Errorf("it is not the socket that was there before: %v", err)
				}
			}
		})
	}
}

// TestStandInRefuses: where a daemon listens, and where there is no socket, nothing is touched; what came in its place stays.
func TestStandInRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := StandIn(path, http.HandlerFunc(hello)); err == nil || !strings.Contains(err.Error(), "somebody listens") {
		t.Errorf("error %v", err)
	}
	only(t, path, true)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := StandIn(path, http.HandlerFunc(hello)); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("error %v", err)
	}
	only(t, path, true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	deadSocket(t, path)
	end, err := StandIn(path, http.HandlerFunc(hello))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	daemons := deadSocket(t, path)
	end()
	if now, err := os.Lstat(path); err != nil || !os.SameFile(daemons, now) {
		t.Errorf("what came in its place is gone: %v", err)
	}
	only(t, path, true)
}
