package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// TestInstall switches nodes whose containerd is missing or too old, and takes one back; with the full matrix all of them, each as it was.
func TestInstall(t *testing.T) {
	deb := debs(t, "containerd/bookworm", "runc/bookworm", "containerd/bullseye")
	c := up(t, lab.Dockershim, 4) // one more takes what is drained, the cluster's DNS above all
	newOnly := serve(t, deb["containerd/bookworm"], deb["runc/bookworm"])
	all := serve(t, deb["containerd/bookworm"], deb["runc/bookworm"], deb["containerd/bullseye"])
	for _, node := range []string{"node-1", "node-3"} {
		c.staticDocker(t, node, deb["containerd/bullseye"])
	}
	c.oldContainerd(t, "node-2", deb["containerd/bullseye"])
	c.deploy(t)

	t.Run("nodes", func(t *testing.T) {
		for _, way := range []struct {
			name string
			test func(*testing.T)
		}{
			{"Repository", func(t *testing.T) { c.testRepository(t, "node-1", newOnly) }},
			{"Archive", func(t *testing.T) { c.testArchive(t, "node-3") }},
			{"Upgrade", func(t *testing.T) { c.testUpgrade(t, "node-2", newOnly, all) }},
		} {
			t.Run(way.name, func(t *testing.T) {
				t.Parallel()
				way.test(t)
			})
		}
	})
}

// copyTo brings a file to a node.
func (c *cluster) copyTo(t *testing.T, node, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Root(node), to), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// staticDocker has a node's Docker run a containerd of its own, with no other one on the host.
func (c *cluster) staticDocker(t *testing.T, node, containerd string) {
	t.Helper()
	c.copyTo(t, node, containerd, "/root/old.deb")
	c.copyTo(t, node, "static-docker.sh", "/root/static-docker.sh")
	c.exec(t, node, "sh /root/static-docker.sh")
	c.privateContainerd(t, node)
}

// privateContainerd checks that Docker runs a containerd of its own.
func (c *cluster) privateContainerd(t *testing.T, node string) {
	t.Helper()
	if out := c.exec(t, node, "pgrep -P $(pgrep -x dockerd) -x containerd || true"); out == "" {
		t.Errorf("%s: dockerd does not run a containerd of its own", node)
	}
	if out := c.exec(t, node, "ls -d /run/containerd/containerd.sock 2>/dev/null || true"); out != "" {
		t.Errorf("%s: there is %s beside Docker's own containerd", node, out)
	}
}

// oldContainerd gives a node the containerd of Debian 11, as one has that was not upgraded in whole.
func (c *cluster) oldContainerd(t *testing.T, node, containerd string) {
	t.Helper()
	c.copyTo(t, node, containerd, "/root/old.deb")
	c.exec(t, node, `set -e
		systemctl stop kubelet docker.socket docker.service containerd.service
		rm -rf /var/lib/containerd /run/containerd
		dpkg --force-downgrade --force-confold --install /root/old.deb
		systemctl start containerd docker.socket docker kubelet`)
}

// packages are what dpkg has of Docker and containerd, with their state.
func (c *cluster) packages(t *testing.T, node string) string {
	t.Helper()
	return c.exec(t, node, `dpkg-query -W -f='${db:Status-Abbrev} ${Package} ${Version}\n' 'containerd*' 'runc*' 'docker*' 2>/dev/null | grep -v '^un'; true`)
}

// refused checks that a switch is refused for a reason, with nothing changed.
func (c *cluster) refused(t *testing.T, node string, wants []string, more ...string) {
	t.Helper()
	pods, files, packages := c.podIDs(t, node), c.fingerprint(t, node), c.packages(t, node)
	r := c.switchNode(t, 2, node, more...)
	for _, want := range wants {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("the refusal does not say %q:\n%s", want, r.stderr)
		}
	}
	c.nothingLeft(t, node)
	n := c.node(t, node)
	if !n.ready() || n.Spec.Unschedulable || !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "docker://") {
		t.Errorf("%s: ready %t, unschedulable %t, runtime %s", node, n.ready(), n.Spec.Unschedulable, n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	// Others may have come from a node that is drained at the same time.
	now := c.podIDs(t, node)
	for pod := range strings.Lines(pods) {
		if strings.Contains(pod, "docker://") && !strings.Contains(now, pod) {
			t.Errorf("%s: a pod changed: %snow:\n%s", node, pod, now)
		}
	}
	c.same(t, node, files, packages)
}

// same checks files, units and packages.
func (c *cluster) same(t *testing.T, node, files, packages string) {
	t.Helper()
	if d := differences(files, c.fingerprint(t, node)); d != "" {
		t.Errorf("%s: files changed:\n%s", node, d)
	}
	if now := c.packages(t, node); now != packages {
		t.Errorf("%s: packages were\n%s\nand are\n%s", node, packages, now)
	}
}

// testRepository installs by apt what the node's source has, beside a Docker with a containerd of its own.
func (c *cluster) testRepository(t *testing.T, node string, r *repository) {
	c.refused(t, node, []string{"containerd is not installed", "apt's repositories have no containerd", "--containerd-archive"})
	c.use(t, node, r)
	files, packages := c.fingerprint(t, node), c.packages(t, node)
	w := &worker{matrix: &matrix{cluster: c}, node: node}
	switched, struck := w.switchUnder(t, cell{at: before("containerd-install"), strike: cutPowerUnderDpkg})
	t.Logf("%s%s[exit %d]", switched.stderr, switched.stdout, switched.code)
	if struck != nil || switched.code != 0 {
		t.Fatalf("a power cut while dpkg works: exit %d, %v", switched.code, struck)
	}
	if !strings.Contains(switched.stderr, "is installed by apt: ") {
		t.Errorf("the switch does not say what it installs:\n%s", switched.stderr)
	}
	c.onStaticNode(t, node)
	if now := c.packages(t, node); !strings.Contains(now, "ii  containerd 1.6.") || !strings.Contains(now, "ii  runc ") {
		t.Errorf("packages are\n%s", now)
	}
	// The link to containerd's usual address lasts, and Docker stays away from it.
	if err := cutPower(t.Context(), c, node); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, func() string {
		out, err := c.Exec(t.Context(), node, "crictl", "-r", "unix:///run/containerd/containerd.sock", "pods", "-q", "--state", "ready")
		if err == nil && out == "" {
			return node + ": no pod runs"
		}
		return errorText(err)
	})
	c.onStaticNode(t, node)
	c.rollback(t, node, files)
	c.same(t, node, files, packages)
	c.privateContainerd(t, node)
}

// cutPowerUnderDpkg cuts the power in the middle of a package's installation.
func cutPowerUnderDpkg(ctx context.Context, c *cluster, node string) error {
	for {
		// dpkg unpacks with a child of that name.
		if _, err := c.Exec(ctx, node, "pgrep", "-x", "dpkg-deb"); err == nil {
			return cutPower(ctx, c, node)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// onStaticNode checks a node that was switched from a Docker of static binaries.
func (c *cluster) onStaticNode(t *testing.T, node string) {
	t.Helper()
	c.waitPodsOn(t, node)
	if n := c.node(t, node); !strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, "containerd://") {
		t.Errorf("%s: runtime %s", node, n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	if out := c.exec(t, node, "pgrep -x dockerd || true"); out != "" {
		t.Errorf("%s: dockerd runs as %s", node, out)
	}
	if out := c.exec(t, node, "crictl -r unix:///run/containerd/containerd.sock pods -q | wc -l"); out == "0" {
		t.Errorf("%s: containerd has no pods at its usual address", node)
	}
}

// testUpgrade has apt upgrade a containerd that Docker uses, and take it back under it.
func (c *cluster) testUpgrade(t *testing.T, node string, newOnly, all *repository) {
	c.use(t, node, newOnly)
	c.refused(t, node, []string{"containerd 1.4.13", "too old", "no way back"})
	c.use(t, node, all)
	// The rehearsal comes after the upgrade, and fails: the pods go on through that and through the way back.
	c.exec(t, node, `echo '{"cniVersion":"0.4.0","name":"broken","plugins":[{"type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.99.0.0/33"}]]}}]}' > /etc/cni/net.d/00-broken.conflist`)
	c.refused(t, node, []string{"replaces 1.4.13", "10.99.0.0/33"})
	c.exec(t, node, "docker ps -q | xargs -n 1 docker top") // asks containerd
	c.exec(t, node, "rm /etc/cni/net.d/00-broken.conflist")
	files, packages := c.fingerprint(t, node), c.packages(t, node)
	switched := c.switchNode(t, 0, node, "--soak", "0s")
	if !strings.Contains(switched.stderr, "replaces 1.4.13") {
		t.Errorf("the switch does not say what it replaces:\n%s", switched.stderr)
	}
	c.onContainerd(t, node, false)
	c.waitPodsOn(t, node)
	if os.Getenv(fullMatrix) == "" {
		return
	}
	c.rollback(t, node, files)
	c.same(t, node, files, packages)
	c.exec(t, node, "docker ps -q | xargs -n 1 docker top")
}

// testArchive installs from an archive where there is no repository.
func (c *cluster) testArchive(t *testing.T, node string) {
	const path = "/srv/containerd-2.4.2-linux.tar.gz"
	archive := release(t)
	c.copyTo(t, node, archive, path)
	c.exec(t, node, "echo 00 > "+path+".sha256sum")
	c.refused(t, node, []string{"containerd is not installed", "its SHA-256 is"}, "--containerd-archive", path)
	c.copyTo(t, node, archive+".sha256sum", path+".sha256sum")
	files, packages := c.fingerprint(t, node), c.packages(t, node)
	c.switchNode(t, 0, node, "--soak", "0s", "--containerd-archive", path)
	c.onStaticNode(t, node)
	if out := c.node(t, node).Status.NodeInfo.ContainerRuntimeVersion; !strings.HasPrefix(out, "containerd://2.4.2") {
		t.Errorf("%s: runtime %s", node, out)
	}
	if out := c.exec(t, node, "systemctl show containerd -p LimitNOFILE --value"); out != "524288" {
		t.Errorf("%s: containerd's LimitNOFILE is %s, Docker's was 524288", node, out)
	}
	if os.Getenv(fullMatrix) == "" {
		return
	}
	c.rollback(t, node, files)
	c.same(t, node, files, packages)
	c.privateContainerd(t, node)
	if out := c.exec(t, node, "ls -d /opt/kubectl-runtime 2>/dev/null || true"); out != "" {
		t.Errorf("%s: left behind: %s", node, out)
	}
}
