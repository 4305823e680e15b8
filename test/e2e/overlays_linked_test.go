package e2e

import (
	"strings"
	"testing"
)

// byItsPath has Docker's unit lie in /opt, and enables it from there.
const byItsPath = `set -e
systemctl disable --quiet docker.service
mkdir -p /opt/docker
cp "$(systemctl show -p FragmentPath --value docker.service)" /opt/docker/docker.service
systemctl enable --quiet /opt/docker/docker.service
[ "$(readlink /etc/systemd/system/docker.service)" = /opt/docker/docker.service ]`

// linkFolders moves the folders of drop-ins into /opt, and leaves links to them.
const linkFolders = `set -e
for unit in kubelet docker containerd; do
	folder=/etc/systemd/system/$unit.service.d kept=/opt/units/$unit.service.d
	if [ -d $folder ]; then
		cp -a $folder/. $kept/
		rm -r $folder
	fi
	ln -s ../../../opt/units/$unit.service.d $folder
done
systemctl daemon-reload
systemctl restart containerd`

// raiseLimit takes a limit out of containerd's drop-in, and leaves containerd, from which Docker's pods inherit it, running with it.
const raiseLimit = `sed -i /LimitNOFILE/d /opt/units/containerd.service.d/10-kept.conf && systemctl daemon-reload`

// linked is a node whose administrator keeps units and drop-ins in /opt, where the folders of drop-ins are links to. The node is rebooted
// on either runtime.
func linked() layout {
	before := ""
	return layout{
		name:     "linked",
		overlays: []string{"linked"},
		prepare: func(t *testing.T, n *dressed) {
			n.exec(t, n.node, linkFolders)
			n.exec(t, n.node, byItsPath)
			n.exec(t, n.node, raiseLimit)
			before = linksAndFiles(t, n)
		},
		checks: []check{
			{"open files are limited as in the containerd that still runs", func(t *testing.T, n *dressed, on runtime) {
				if n.round == 0 { // the reboot on Docker later gives pods the new limit
					openFiles(10000, 10000)(t, n, on)
				}
			}},
			{"every link and file is as before", func(t *testing.T, n *dressed, on runtime) {
				if on == onDocker && n.round > 0 {
					reboot(t, n)
				}
				linksLeadTo(t, n)
				if on == onContainerd {
					return
				}
				if d := differences(before, linksAndFiles(t, n)); d != "" {
					t.Errorf("differs:\n%s", d)
				}
				if d := differences(n.files, n.fingerprint(t, n.node)); d != "" {
					t.Errorf("files differ:\n%s", d)
				}
			}},
		},
		between: reboots,
	}
}

// linksLeadTo checks that the administrator's links lead to /opt, and that systemd reads what is there.
func linksLeadTo(t *testing.T, n *dressed) {
	t.Helper()
	const links = "kubelet.service.d docker.service.d containerd.service.d docker.service"
	want := "../../../opt/units/kubelet.service.d\n../../../opt/units/docker.service.d\n../../../opt/units/containerd.service.d\n/opt/docker/docker.service"
	if got := n.exec(t, n.node, "cd /etc/systemd/system; readlink "+links); got != want {
		t.Errorf("the links lead to\n%s\nwant\n%s", got, want)
	}
	for _, unit := range []string{"kubelet", "docker", "containerd"} {
		if got := n.exec(t, n.node, "systemctl show -p Environment --value "+unit); !strings.Contains(got, "KEPT_IN=/opt") {
			t.Errorf("systemd does not read the drop-in of %s: %q", unit, got)
		}
	}
}

func linksAndFiles(t *testing.T, n *dressed) string {
	t.Helper()
	return n.exec(t, n.node, `find /etc/systemd/system /opt/units /opt/docker -printf '%p %y %l\n' | sort`)
}
