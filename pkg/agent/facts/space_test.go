package facts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestSpaces: what the images need is looked for on each file system, and what the kubelet wants to have free stays free.
func TestSpaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount file systems")
	}
	const size = 4 << 30
	disk := func() string {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
			t.Skipf("cannot mount a file system: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		return dir
	}
	docker, containerd, node := disk(), disk(), disk()
	for _, test := range []struct {
		name                  string
		containerd, node, tmp string
		hard                  string
		need, temporary       int64
		want                  string
	}{
		{"enough", containerd, node, "", "", 3 << 30, 3 << 30, ""},
		{"threshold of the runtime's file system", containerd, node, "", "imagefs.available<50%,nodefs.available<99%", 3 << 30, 0, "3072 MiB are needed in " + containerd + ", 4096 MiB are free, and 2048 MiB of them have to stay free (the kubelet's eviction threshold imagefs.available<50%)"},
		{"threshold of the node's file system", containerd, containerd, "", "imagefs.available<1%,nodefs.available<3Gi", 2 << 30, 0, "(the kubelet's eviction threshold nodefs.available<3Gi)"},
		{"the reserve is more", containerd, node, "", "imagefs.available<1%", 3<<30 + 1<<20, 0, "3073 MiB are needed in " + containerd + ", 4096 MiB are free, and 1024 MiB of them have to stay free"},
		{"Docker's temporary files", containerd, node, "", "", 0, 4 << 30, "4096 MiB are needed in " + docker},
		{"Docker's temporary files elsewhere", containerd, node, node, "", 0, 4 << 30, "4096 MiB are needed in " + node},
		{"both on one file system", docker, node, "", "", 2 << 30, 2 << 30, "4096 MiB are needed in " + docker},
		{"nothing needed", containerd, node, "", "imagefs.available<99%", 0, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := Found{
				Facts:  protocol.Facts{KubeletVersion: "v1.23.17", DockerRoot: docker},
				Docker: translate.Settings{TempDir: test.tmp},
				// Nothing of it is there yet.
				KubeletArgs: []string{"kubelet", "--root-dir=" + filepath.Join(test.node, "kubelet"), "--eviction-hard=" + test.hard},
			}
			root, temporary, err := found.Spaces(filepath.Join(test.containerd, "containerd"))
			if err != nil {
				t.Fatal(err)
			}
			err = images.CheckSpace(images.Demand{Space: root, Bytes: test.need}, images.Demand{Space: temporary, Bytes: test.temporary})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
}
