// Package agenttest finds real containerd, runc and CNI programs for tests and runs containerd daemons on directories of
// their own, never the machine's. Only tests import it.
package agenttest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Release is one containerd with its shim.
type Release struct {
	// Name is "1.6", "1.7", "2.0" or "2.4".
	Name   string
	Binary string
	// Dir holds the shims; it has to be in the daemon's PATH.
	Dir string
}

// Releases returns what there is of the oldest and the newest containerd that the lab's nodes run, and skips the test, saying
// how to get them, if it is not root or there is none.
func Releases(t *testing.T) []Release {
	t.Helper()
	needRoot(t)
	var releases []Release
	if deb := debian(t); deb != "" {
		releases = append(releases, Release{Name: "1.6", Binary: filepath.Join(deb, "usr/bin/containerd"), Dir: filepath.Join(deb, "usr/bin")})
	}
	if dir := built("containerd"); dir != "" {
		releases = append(releases, Release{Name: "2.4", Binary: filepath.Join(dir, "containerd"), Dir: dir})
	}
	if len(releases) == 0 {
		t.Skip("no containerd to test with: run test/lab/build/build.sh containerd, or run on Debian 12")
	}
	return releases
}

// ConfigReleases are Releases and those between them whose config differs. These have no shim: they can be asked for their configuration,
// and load it, but run no container.
func ConfigReleases(t *testing.T) []Release {
	t.Helper()
	releases := Releases(t)
	for _, name := range []string{"1.7", "2.0"} {
		if dir := built("containerd-" + name); dir != "" {
			releases = append(releases, Release{Name: name, Binary: filepath.Join(dir, "containerd"), Dir: dir})
		} else {
			t.Logf("without containerd %s: run test/lab/build/build.sh containerd-%s", name, name)
		}
	}
	return releases
}

// Runc returns the path of a real runc, and skips the test if there is none.
func Runc(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("runc"); err == nil {
		return path
	}
	if deb := debian(t); deb != "" {
		return filepath.Join(deb, "usr/sbin/runc")
	}
	t.Skip("no runc to test with: install it, or run on Debian 12")
	return ""
}

// CNIPlugins returns a directory with the reference CNI plugins, and skips the test if there is none.
func CNIPlugins(t *testing.T) string {
	t.Helper()
	needRoot(t)
	for _, dir := range []string{"/opt/cni/bin", "/usr/lib/cni"} {
		if _, err := os.Stat(filepath.Join(dir, "ptp")); err == nil {
			return dir
		}
	}
	if deb := debian(t); deb != "" {
		return filepath.Join(deb, "usr/lib/cni")
	}
	t.Skip("no CNI plugins to test with: install containernetworking-plugins")
	return ""
}

func needRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real daemons: not with -short")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

// cache is the folder that test/lab/build/build.sh uses, too.
func cache() string {
	if dir := os.Getenv("KUBECTL_RUNTIME_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return os.TempDir()
	}
	return filepath.Join(dir, "kubectl-runtime")
}

// built returns the folder of what build.sh builds under a name, if it has been built.
func built(name string) string {
	root, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return ""
	}
	out, err := exec.Command(filepath.Join(strings.TrimSpace(string(root)), "test/lab/build/build.sh"), "--path", name).Output()
	if err != nil {
		return ""
	}
	dir := strings.TrimSpace(string(out))
	if _, err := os.Stat(filepath.Join(dir, ".complete")); err != nil {
		return ""
	}
	return dir
}

// debian returns the root of Debian 12's packages containerd, runc, docker.io and containernetworking-plugins, fetched once into the cache
// and unpacked there without being installed. It is empty on other systems.
func debian(t *testing.T) string {
	t.Helper()
	release, _ := os.ReadFile("/etc/os-release")
	if !strings.Contains(string(release), "VERSION_CODENAME=bookworm") {
		return ""
	}
	dir := filepath.Join(cache(), "debian-12-docker")
	if _, err := os.Stat(filepath.Join(dir, "usr/bin/containerd")); err == nil {
		return dir
	}
	return fetch(t, dir, "usr/bin/containerd", `apt-get download -qq containerd runc containernetworking-plugins docker.io`)
}

// trixie returns the root of Debian 13's package docker.io, as debian does; its programs run on Debian 12, too.
func trixie(t *testing.T) string {
	t.Helper()
	release, _ := os.ReadFile("/etc/os-release")
	if !strings.Contains(string(release), "VERSION_CODENAME=bookworm") {
		return ""
	}
	dir := filepath.Join(cache(), "debian-13-docker")
	if _, err := os.Stat(filepath.Join(dir, "usr/sbin/dockerd")); err == nil {
		return dir
	}
	return fetch(t, dir, "usr/sbin/dockerd", `mkdir -p lists/partial archives/partial &&
		uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1) && echo "deb $uri trixie main" >sources.list &&
		set -- "$1" "$2" "$3" -qq -o Dir::Etc::SourceList="$PWD/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$PWD/lists" -o Dir::Cache="$PWD" -o APT::Sandbox::User=root &&
		(shift 3 && apt-get update "$@" && apt-get download "$@" docker.io)`)
}

// fetch keeps in dir what the packages hold that the shell command download puts into the working directory. program is one of their files.
func fetch(t *testing.T, dir, program, download string) string {
	t.Helper()
	tmp, err := os.MkdirTemp("", "agenttest-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	script := `cd "$1" && { ` + download + `; } && for deb in *.deb; do dpkg -x "$deb" root; done &&
		mkdir -p "$(dirname "$2")" && (mv -T root "$2" || [ -e "$2/$3" ])`
	if out, err := exec.Command("sh", "-c", script, "sh", tmp, dir, program).CombinedOutput(); err != nil {
		t.Logf("fetch Debian's packages for %s: %v\n%s", dir, err, out)
		return ""
	}
	return dir
}

// Dockerd is a Docker daemon's program that is not started.
type Dockerd struct {
	// Version is "20.10.24" or the like.
	Version string
	Binary  string
}

// Dockerds returns Debian's dockerd of 20.10 and 26.1, those that the lab's nodes run, and skips the test, saying how to get them, if it is
// not root or they are missing.
func Dockerds(t *testing.T) []Dockerd {
	t.Helper()
	needRoot(t)
	var found []Dockerd
	for _, root := range []string{debian(t), trixie(t)} {
		binary := filepath.Join(root, "usr/sbin/dockerd")
		out, err := exec.Command(binary, "--version").CombinedOutput()
		fields := strings.FieldsFunc(string(out), func(r rune) bool { return r == ' ' || r == '+' || r == ',' })
		if root == "" || err != nil || len(fields) < 3 {
			t.Skipf("no dockerd of 20.10 and 26.1 to test with (%s: %v): run on Debian 12, with access to its packages", binary, err)
		}
		found = append(found, Dockerd{Version: fields[2], Binary: binary})
	}
	return found
}

// Isolated is the config that keeps a daemon off the machine's own directories and sockets. DIR is replaced by Start.
const Isolated = `version = 2
[debug]
address = "DIR/debug.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "DIR/opt"
[plugins."io.containerd.nri.v1.nri"]
disable = true
`

// Daemon is a running containerd.
type Daemon struct {
	Address string
	Dir     string
	// Log is the path of its output.
	Log string
	PID int
}

// Hang stops the daemon without ending it, as a deadlock would. Resume ends that, as the end of the test does.
func (d *Daemon) Hang() error { return syscall.Kill(d.PID, syscall.SIGSTOP) }

// Resume has a daemon that hangs go on.
func (d *Daemon) Resume() error { return syscall.Kill(d.PID, syscall.SIGCONT) }

// Start runs release with config, in which DIR stands for the daemon's own directory, until the test ends. Shims and runc (its
// full path, may be empty) are in its PATH. It waits until the socket is there.
func Start(t *testing.T, release Release, config, runc string) *Daemon {
	t.Helper()
	// t.TempDir() is too long for a socket's address.
	dir, err := os.MkdirTemp("", "ctr-")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Dir: dir, Address: filepath.Join(dir, "c.sock"), Log: filepath.Join(dir, "log")}
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(config, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(d.Log)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(release.Binary, "-c", file, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--address", d.Address)
	cmd.Env = append(os.Environ(), "PATH="+release.Dir+":"+filepath.Dir(runc)+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.PID = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			out, _ := os.ReadFile(d.Log)
			t.Logf("containerd %s said:\n%s", release.Name, out)
		}
		unmountBelow(dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		if _, err := os.Stat(d.Address); err == nil {
			return d
		}
		select {
		case <-ctx.Done():
			t.Fatalf("containerd %s does not listen", release.Name)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Mounts lists the mount points below dir, deepest last.
func Mounts(dir string) []string {
	var points []string
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points
}

func unmountBelow(dir string) {
	points := Mounts(dir)
	for i := len(points) - 1; i >= 0; i-- {
		_ = syscall.Unmount(points[i], syscall.MNT_DETACH)
	}
}
