package e2e

import (
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// imageStore is Docker with its images in containerd.
func imageStore() layout {
	return layout{
		name: "image-store", profile: lab.CRIDockerd, // dockershim's nodes have a Docker without it
		overlays: []string{"image-store"},
		prepare:  noteContent,
		checks:   []check{{"blobs and files are shared", shared}},
	}
}

// written lists what was written to containerd's content store since /var/tmp/pinned was made. A blob that is written while it is there
// already leaves its trace in the ingest folder; garbage that is collected leaves one in that of the blobs, and each start
// of containerd, which tries fs-verity, one in the folder above.
const written = "find /var/lib/containerd/io.containerd.content.v1.content -mindepth 1 -newer /var/tmp/pinned -not -path '*/blobs/sha256'"

func noteContent(t *testing.T, n *dressed) {
	n.exec(t, n.node, "docker image inspect -f '{{index .RepoDigests 0}}' lab.local/busybox:1 > /var/tmp/pinned")
}

// shared runs a pod that nobody could pull an image for, and looks for copies.
func shared(t *testing.T, n *dressed, on runtime) {
	pinned := n.exec(t, n.node, "cat /var/tmp/pinned")
	if !strings.HasPrefix(pinned, "lab.local/busybox@sha256:") {
		t.Fatalf("Docker knows the image by the digest %q", pinned)
	}
	if on == onDocker {
		if out := n.exec(t, n.node, "docker info -f '{{.DriverStatus}}'"); !strings.Contains(out, "io.containerd.snapshotter.v1") {
			t.Fatalf("Docker has another store: %s", out)
		}
		n.runs(t, pod{name: "pinned", image: pinned})
		return
	}
	if strings.Contains(n.said, "copied instead of linked") {
		t.Errorf("an image was copied:\n%s", n.said)
	}
	if out := n.exec(t, n.node, written); out != "" {
		t.Errorf("something was written to the content store:\n%s", out)
	}
	const files = "find /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots -path '*/fs/bin/busybox' -printf '%n\\n' | sort -u"
	if out := n.exec(t, n.node, files); out != "2" {
		t.Errorf("a file of an image has so many names, not 2: %q", out)
	}
	n.runs(t, pod{name: "pinned", image: pinned})
}
