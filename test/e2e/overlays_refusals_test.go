package e2e

import (
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// barrier is something on a node that a switch must not begin with.
type barrier struct {
	name string
	// setup and cleanup are shell lines for the node.
	setup, cleanup string
	// want are words of the error.
	want []string
	// profile is the only one where it is a reason, if set.
	profile string
}

const saveDaemonJSON, restoreDaemonJSON = "cp -a /etc/docker/daemon.json /root/kept.json; ", "mv /root/kept.json /etc/docker/daemon.json"

func barriers() []barrier {
	daemonJSON := func(command string) (setup, cleanup string) {
		return saveDaemonJSON + command, restoreDaemonJSON
	}
	var list []barrier
	add := func(r barrier, command string) {
		r.setup, r.cleanup = daemonJSON(command)
		list = append(list, r)
	}
	add(barrier{name: "daemon.json that is no JSON", want: []string{"/etc/docker/daemon.json:2:", "no way back"}},
		`printf '{\n  debug: true\n}\n' > /etc/docker/daemon.json`)
	add(barrier{name: "daemon.json with a byte order mark", want: []string{"/etc/docker/daemon.json:1:1", "byte order mark"}, profile: lab.Dockershim},
		`printf '\357\273\277{"debug": true}\n' > /etc/docker/daemon.json`)
	add(barrier{name: "daemon.json with a key that Docker does not know", want: []string{"/etc/docker/daemon.json:1:2", "frobnicate"}},
		`printf '{"frobnicate": true}\n' > /etc/docker/daemon.json`)
	add(barrier{name: "daemon.json with a key that Docker knows no longer", want: []string{"/etc/docker/daemon.json:2:3", "changed since dockerd started", "cluster-store"}, profile: lab.CRIDockerd},
		`printf '{\n  "cluster-store": "consul://127.0.0.1"\n}\n' > /etc/docker/daemon.json`)
	return append(list,
		barrier{
			name:    "containers that Kubernetes does not manage",
			setup:   "docker run -d --network none --name old-database lab.local/busybox:1 /bin/busybox sleep 100000",
			cleanup: "docker rm -f old-database",
			want:    []string{"old-database", "--keep-docker"},
		},
		barrier{
			name:    "kubelet flags that it was not started with",
			setup:   "cp -a /etc/default/kubelet /root/kept; echo 'KUBELET_EXTRA_ARGS=--v=9' > /etc/default/kubelet",
			cleanup: "mv /root/kept /etc/default/kubelet",
			want:    []string{"--v=9", "restart the kubelet"},
		},
		barrier{
			name:    "containerd's config that is no TOML",
			setup:   "mkdir -p /etc/containerd; touch /etc/containerd/config.toml; cp -a /etc/containerd/config.toml /root/kept; echo '[plugins' > /etc/containerd/config.toml",
			cleanup: "mv /root/kept /etc/containerd/config.toml",
			want:    []string{"/etc/containerd/config.toml: parse containerd config: line 1"},
		},
		barrier{
			name:    "the kubelet bound to Docker",
			setup:   "mkdir -p /etc/systemd/system/kubelet.service.d; printf '[Unit]\\nBindsTo=docker.service\\n' > /etc/systemd/system/kubelet.service.d/90-docker.conf; systemctl daemon-reload",
			cleanup: "rm /etc/systemd/system/kubelet.service.d/90-docker.conf; systemctl daemon-reload",
			want:    []string{"BindsTo=docker.service", "90-docker.conf"},
		},
		barrier{
			name:    "a containerd whose restart would kill containers",
			setup:   "mkdir -p /etc/systemd/system/containerd.service.d; printf '[Service]\\nKillMode=mixed\\n' > /etc/systemd/system/containerd.service.d/90-kill.conf; systemctl daemon-reload",
			cleanup: "rm /etc/systemd/system/containerd.service.d/90-kill.conf; systemctl daemon-reload",
			want:    []string{"KillMode=mixed", "90-kill.conf:2", "KillMode=process"},
		})
}

// testRefusals has a switch refuse the node for each reason, with nothing changed.
func (c *cluster) testRefusals(t *testing.T, node, profile string) {
	for _, r := range barriers() {
		if r.profile != "" && r.profile != profile {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			c.exec(t, node, r.setup)
			defer c.exec(t, node, r.cleanup)
			pods, files := c.podIDs(t, node), c.fingerprint(t, node)
			out := c.switchNode(t, 2, node)
			for _, want := range r.want {
				if !strings.Contains(out.stderr, want) {
					t.Errorf("the reason does not say %q:\n%s", want, out.stderr)
				}
			}
			c.untouched(t, node, pods)
			if d := differences(files, c.fingerprint(t, node)); d != "" {
				t.Errorf("files changed:\n%s", d)
			}
		})
	}
}
