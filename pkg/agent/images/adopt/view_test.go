package adopt

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCommon(t *testing.T) {
	for _, test := range []struct {
		name, mounts, one, other string
		want                     string // the mount point, empty if there is none
	}{
		{"one mount", "1 0 8:1 / / rw", "/var/lib/docker/overlay2", "/var/lib/containerd", "/"},
		{"Docker's own", "1 0 8:1 / / rw\n2 1 8:1 /var/lib/docker/overlay2 /var/lib/docker/overlay2 rw", "/var/lib/docker/overlay2/a/diff", "/var/lib/containerd", "/"},
		{
			"both bound from one partition", "1 0 8:1 / / rw\n2 1 8:2 / /data rw\n3 1 8:2 /docker /var/lib/docker rw\n4 1 8:2 /ctr /var/lib/containerd rw",
			"/var/lib/docker/overlay2", "/var/lib/containerd/x", "/data",
		},
		{
			"the partition itself is not mounted", "1 0 8:1 / / rw\n3 1 8:2 /docker /var/lib/docker rw\n4 1 8:2 /ctr /var/lib/containerd rw",
			"/var/lib/docker/overlay2", "/var/lib/containerd", "",
		},
		{"two partitions", "1 0 8:1 / / rw\n2 1 8:2 / /var/lib/docker rw", "/var/lib/docker/overlay2", "/var/lib/containerd", ""},
		{
			"partition covered by another", "1 0 8:1 / / rw\n2 1 8:2 / /data rw\n5 2 8:3 / /data rw\n3 1 8:2 /docker /var/lib/docker rw\n4 1 8:2 /ctr /ctr rw",
			"/var/lib/docker", "/ctr", "",
		},
		{"names that begin alike", "1 0 8:1 / / rw\n2 1 8:2 / /var/lib/docker rw", "/var/lib/docker2", "/var/lib/containerd", "/"},
		{"a root directory that is not the file system's", "1 0 8:1 /nodes/n1 / rw\n2 1 8:1 /nodes/n1/docker/overlay2 /docker/overlay2 rw", "/docker/overlay2", "/ctr", "/"},
		{"blanks", "1 0 8:1 / / rw\n2 1 8:2 / /my\\040data rw", "/my data/docker", "/my data/ctr", "/my data"},
		{"nothing to read", "", "/a", "/b", ""},
	} {
		got, err := common(readMounts(test.mounts), test.one, test.other)
		if got.point != test.want || (err == nil) != (test.want != "") || err != nil && !errors.Is(err, unix.EXDEV) {
			t.Errorf("%s: %q, %v; want %q", test.name, got.point, err, test.want)
		}
	}
}

// TestMirrorFromAMount has the source mounted over itself, as Docker does it, and reached by a link.
func TestMirrorFromAMount(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	base := t.TempDir()
	for _, dir := range []string{"docker/a/diff", "containerd"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	docker := filepath.Join(base, "docker")
	if err := os.WriteFile(filepath.Join(docker, "a/diff/file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(docker, docker, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(docker, unix.MNT_DETACH) }()
	if err := os.Symlink(docker, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	from, to := filepath.Join(base, "link/a/diff"), filepath.Join(base, "containerd")
	if err := mirror(t.Context(), directly, from, to, false); !errors.Is(err, unix.EXDEV) {
		t.Fatalf("from one mount to another: %v; this test shows nothing", err)
	}
	if err := os.Remove(filepath.Join(to, "file")); err == nil {
		t.Fatal("a file was linked from one mount to another")
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !Linkable(from, to) {
		t.Error("it is said not to work")
	}
	if err := mirrorThere(t, from, to, false); err != nil {
		t.Fatal(err)
	}
	var one, other unix.Stat_t
	if err := errors.Join(unix.Stat(filepath.Join(from, "file"), &one), unix.Stat(filepath.Join(to, "file"), &other)); err != nil || one.Ino != other.Ino {
		t.Errorf("inodes %d and %d (%v)", one.Ino, other.Ino, err)
	}
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Count(string(after), base) != strings.Count(string(before), base) {
		t.Errorf("mounts were\n%s\nand are\n%s", before, after)
	}
}
