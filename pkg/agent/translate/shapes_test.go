package translate_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
)

// TestShapes are whole configurations as installers and guides leave them, with dockerd's command line where they use that.
func TestShapes(t *testing.T) {
	type S = translate.Settings
	for _, test := range []struct {
		name, json, args string
		environ          []string
		want             S
		warnings         string // keys, in order
	}{
		{
			name: "kubeadm's page on container runtimes",
			json: `{
  "exec-opts": ["native.cgroupdriver=systemd"],
  "log-driver": "json-file",
  "log-opts": {
    "max-size": "100m"
  },
  "storage-driver": "overlay2",
  "storage-opts": [
    "overlay2.override_kernel_check=true"
  ]
}
`,
			want: S{StorageDriver: "overlay2", LogMaxSize: 100_000_000},
		},
		{
			name: "Amazon EKS",
			json: `{
  "bridge": "none",
  "log-driver": "json-file",
  "log-opts": {
    "max-size": "10m",
    "max-file": "10"
  },
  "live-restore": true,
  "max-concurrent-downloads": 10
}`,
			want: S{MaxDownloads: 10, LogMaxSize: 10_000_000, LogMaxFiles: 10},
		},
		{
			name: "Amazon Linux 2, /etc/sysconfig/docker",
			args: "-H fd:// --containerd=/run/containerd/containerd.sock --default-ulimit nofile=32768:65536",
			want: S{Ulimits: []translate.Limit{{Name: "nofile", Soft: 32768, Hard: 65536}}},
		},
		{
			name:     "Amazon Linux 2 of 2018",
			args:     "--default-ulimit nofile=1024:4096",
			want:     S{Ulimits: []translate.Limit{{Name: "nofile", Soft: 1024, Hard: 4096}}},
			warnings: "",
		},
		{
			name: "kubespray, DOCKER_OPTS",
			args: "--iptables=false --exec-opt native.cgroupdriver=systemd --insecure-registry=10.233.0.0/18 --registry-mirror=https://mirror.local " +
				"--data-root=/var/lib/docker --log-opt max-size=50m --log-opt max-file=5 --dns 10.233.0.3 --dns-search default.svc.cluster.local --dns-opt ndots:2",
			want:     S{Mirrors: []string{"https://mirror.local"}, InsecureNetworks: []string{"10.233.0.0/18"}, LogMaxSize: 50_000_000, LogMaxFiles: 5},
			warnings: "insecure-registries",
		},
		{
			name: "GKE's old Ubuntu nodes",
			json: `{"pidfile": "/var/run/docker.pid", "iptables": false, "ip-masq": false, "log-level": "warn", "bridge": "cbr0", "mtu": 1460,
				"storage-driver": "overlay2", "live-restore": true, "default-shm-size": "64M", "debug": false,
				"registry-mirrors": ["https://mirror.gcr.io"], "log-driver": "json-file", "log-opts": {"max-file": "5", "max-size": "10m"}}`,
			want: S{Mirrors: []string{"https://mirror.gcr.io"}, StorageDriver: "overlay2", LogLevel: "warn", LogMaxSize: 10_000_000, LogMaxFiles: 5},
		},
		{
			name: "AKS",
			json: `{"live-restore": true, "log-driver": "json-file", "log-opts": {"max-size": "50m", "max-file": "5"}, "data-root": "/mnt/docker",
				"default-ulimits": {"nofile": {"Hard": 1048576, "Name": "nofile", "Soft": 1048576}}}`,
			want:     S{LogMaxSize: 50_000_000, LogMaxFiles: 5, Ulimits: []translate.Limit{{Name: "nofile", Soft: 1048576, Hard: 1048576}}},
			warnings: "data-root",
		},
		{
			name: "AKS with GPUs",
			json: `{"default-runtime": "nvidia", "runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime", "runtimeArgs": []}}}`,
			want: S{DefaultRuntime: "nvidia", Runtimes: []translate.Runtime{{Name: "nvidia", Path: "/usr/bin/nvidia-container-runtime", Args: []string{}}}},
		},
		{
			name: "nvidia-ctk of 2024, with its mode of CDI",
			json: `{
    "exec-opts": ["native.cgroupdriver=systemd"],
    "features": {"cdi": true},
    "runtimes": {
        "nvidia": {"args": [], "path": "nvidia-container-runtime"},
        "nvidia-cdi": {"args": [], "path": "/usr/bin/nvidia-container-runtime.cdi"}
    },
    "default-runtime": "nvidia"
}`,
			want: S{DefaultRuntime: "nvidia", Runtimes: []translate.Runtime{
				{Name: "nvidia", Path: "nvidia-container-runtime"}, {Name: "nvidia-cdi", Path: "/usr/bin/nvidia-container-runtime.cdi"},
			}},
		},
		{
			name: "China: mirrors with and without a slash, Harbor without TLS",
			json: "{\n\t\"registry-mirrors\": [\"https://registry.docker-cn.com\", \"http://hub-mirror.c.163.com/\"],\n" +
				"\t\"insecure-registries\": [\"harbor.local\", \"192.168.0.10:80\", \"[fd00::1]:5000\"],\n" +
				"\t\"exec-opts\": [\"native.cgroupdriver=systemd\"],\n\t\"max-concurrent-downloads\": 20, \"max-concurrent-uploads\": 5\n}\n",
			want: S{
				Mirrors:  []string{"https://registry.docker-cn.com", "http://hub-mirror.c.163.com/"},
				Insecure: []string{"harbor.local", "192.168.0.10:80", "[fd00::1]:5000"}, MaxDownloads: 20,
			},
		},
		{
			name: "the CIS benchmark's",
			json: `{"icc": false, "log-driver": "syslog", "log-opts": {"syslog-address": "udp://192.0.2.1:514"}, "live-restore": true,
				"userland-proxy": false, "no-new-privileges": true, "userns-remap": "default", "selinux-enabled": true,
				"default-ulimits": {"nproc": {"Name": "nproc", "Hard": 4096, "Soft": 2048}}, "authorization-plugins": ["opa"]}`,
			want:     S{SELinux: true, Ulimits: []translate.Limit{{Name: "nproc", Soft: 2048, Hard: 4096}}},
			warnings: "log-driver log-opts no-new-privileges userns-remap",
		},
		{
			name:    "RHEL behind a proxy, by a drop-in",
			json:    `{"storage-driver": "overlay2", "proxies": {"https-proxy": "http://proxy.corp:3128", "no-proxy": ".corp,10.0.0.0/8"}}`,
			args:    "-H fd:// --selinux-enabled --log-driver=journald --add-runtime docker-runc=/usr/libexec/docker/docker-runc-current --default-runtime=docker-runc",
			environ: []string{"PATH=/usr/bin", "http_proxy=http://old.corp:8080", "NO_PROXY=localhost"},
			want: S{
				StorageDriver: "overlay2", SELinux: true, DefaultRuntime: "docker-runc",
				Proxy:    translate.Proxy{HTTP: "http://old.corp:8080", HTTPS: "http://proxy.corp:3128", No: ".corp,10.0.0.0/8"},
				Runtimes: []translate.Runtime{{Name: "docker-runc", Path: "/usr/libexec/docker/docker-runc-current"}},
			},
			warnings: "log-driver",
		},
		{
			name: "CentOS 7 on devicemapper",
			json: `{"storage-driver": "devicemapper", "storage-opts": ["dm.directlvm_device=/dev/xdf", "dm.thinp_percent=95"], "graph": "/data/docker"}`,
			want: S{StorageDriver: "devicemapper"}, warnings: "storage-opts graph",
		},
		{
			name: "Docker 29 with its own image store",
			json: `{"features": {"containerd-snapshotter": true, "time-namespaces": false}, "min-api-version": "1.24", "firewall-backend": "nftables"}`,
			// Keys that are newer than the table are named, as long as dockerd runs with them.
			warnings: "min-api-version firewall-backend",
		},
		{
			name: "a CI host on a node", args: "-H tcp://0.0.0.0:2376 --tlsverify --tlscacert=/c --tlscert=/d --tlskey=/k -D --experimental --init --metrics-addr 0.0.0.0:9323",
			want: S{LogLevel: "debug"}, warnings: "init metrics-addr",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := translate.Input{File: "daemon.json", Data: []byte(test.json), Args: append([]string{"dockerd"}, strings.Fields(test.args)...), Environ: test.environ}
			got, findings, err := translate.Docker(in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreFields(translate.Runtime{}, "Where")); diff != "" {
				t.Errorf("settings -want +got\n%s", diff)
			}
			var warnings []string
			for _, f := range findings {
				if f.Verdict == translate.Warned && !slices.Contains(warnings, f.Key) {
					warnings = append(warnings, f.Key)
				}
			}
			slices.Sort(warnings)
			if want := slices.Sorted(slices.Values(strings.Fields(test.warnings))); !slices.Equal(warnings, want) {
				t.Errorf("warnings about %q, want %q: %v", warnings, want, findings)
			}
		})
	}
}
