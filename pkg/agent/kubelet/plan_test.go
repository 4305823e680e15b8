package kubelet

import (
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
)

const newEndpoint = "unix:///run/containerd/containerd.sock"

const (
	unitFile  = "/lib/systemd/system/kubelet.service"
	dropIn    = "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf"
	flagsEnv  = "/var/lib/kubelet/kubeadm-flags.env"
	extraEnv  = "/etc/default/kubelet"
	config124 = "/var/lib/kubelet/config.yaml"
)

const kubeadmDropIn = `# Note: This dropin only works with kubeadm and kubelet v1.11+
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
# This is a file that "kubeadm init" and "kubeadm join" generates at runtime
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`

const kubeadmUnit = `[Unit]
Description=kubelet: The Kubernetes Node Agent
Wants=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always

[Install]
WantedBy=multi-user.target
`

func reader(files map[string]string) Reader {
	return func(path string) ([]byte, error) {
		if data, ok := files[path]; ok {
			return []byte(data), nil
		}
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
}

// setup makes the setup of a kubelet that was started from these files.
func setup(t *testing.T, version string, files map[string]string) Setup {
	t.Helper()
	v, err := ParseVersion("Kubernetes " + version)
	if err != nil {
		t.Fatal(err)
	}
	s := Setup{Version: v, Read: reader(files), ListConfigDir: func(dir string) ([]string, error) {
		var found []string
		for name := range files {
			if strings.HasPrefix(name, dir+"/") {
				found = append(found, name)
			}
		}
		slices.Sort(found)
		return found, nil
	}}
	for _, name := range []string{unitFile, dropIn} {
		if _, ok := files[name]; ok {
			s.UnitFiles = append(s.UnitFiles, name)
		}
	}
	svc, err := loadService(s.Read, s.UnitFiles)
	if err != nil {
		t.Fatal(err)
	}
	s.Args = svc.args()
	return s
}

func kubeadm(more map[string]string) map[string]string {
	files := map[string]string{unitFile: kubeadmUnit, dropIn: kubeadmDropIn, config124: "kind: KubeletConfiguration\ncgroupDriver: systemd\n"}
	maps.Copy(files, more)
	return files
}

func TestPlan(t *testing.T) {
	for _, test := range []struct {
		name, version string
		files         map[string]string
		old           string
		want          map[string]string
	}{
		{
			"kubeadm 1.23 dockershim", "v1.23.17",
			kubeadm(map[string]string{
				flagsEnv: "KUBELET_KUBEADM_ARGS=\"--network-plugin=cni --pod-infra-container-image=k8s.gcr.io/pause:3.6\"\n",
				extraEnv: "# mine\nKUBELET_EXTRA_ARGS=\n",
			}),
			Dockershim,
			map[string]string{
				flagsEnv: "KUBELET_KUBEADM_ARGS=\"--pod-infra-container-image=k8s.gcr.io/pause:3.6 --container-runtime=remote --container-runtime-endpoint=" + newEndpoint + "\"\n",
			},
		},
		{
			"docker flags in the admin's file, spread and with spaces", "v1.21.0",
			kubeadm(map[string]string{
				flagsEnv: "KUBELET_KUBEADM_ARGS=\"--container-runtime=docker --network-plugin cni\"\n",
				extraEnv: "KUBELET_EXTRA_ARGS='--node-ip 10.0.0.1 --cni-bin-dir /opt/cni/bin \\\n  --v=2' # not a comment\n",
			}),
			Dockershim,
			map[string]string{
				flagsEnv: "KUBELET_KUBEADM_ARGS=\"--container-runtime=remote --container-runtime-endpoint=" + newEndpoint + "\"\n",
			},
		},
		{
			"only an empty admin's file", "v1.22.1",
			kubeadm(map[string]string{extraEnv: "KUBELET_EXTRA_ARGS=\nOTHER=x\n"}),
			Dockershim,
			map[string]string{extraEnv: "KUBELET_EXTRA_ARGS=\"--container-runtime=remote --container-runtime-endpoint=" + newEndpoint + "\"\nOTHER=x\n"},
		},
		{
			"an admin's value without quotes", "v1.22.1",
			kubeadm(map[string]string{extraEnv: "KUBELET_EXTRA_ARGS=--v=2"}),
			Dockershim,
			map[string]string{extraEnv: "KUBELET_EXTRA_ARGS=\"--v=2 --container-runtime=remote --container-runtime-endpoint=" + newEndpoint + "\""},
		},
		{
			"everything in ExecStart, continued", "v1.20.15",
			map[string]string{dropIn: "[Service]\nExecStart=/usr/bin/kubelet \\\n  --config=/var/lib/kubelet/config.yaml \\\n  # a note\n  --network-plugin=cni \\\n  --v=2\nRestart=always\n"},
			Dockershim,
			map[string]string{dropIn: "[Service]\nExecStart=/usr/bin/kubelet \\\n  --config=/var/lib/kubelet/config.yaml \\\n  --v=2 --container-runtime=remote --container-runtime-endpoint=" + newEndpoint + "\nRestart=always\n"},
		},
		{
			"1.24 with cri-dockerd", "v1.24.17",
			kubeadm(map[string]string{flagsEnv: "KUBELET_KUBEADM_ARGS=\"--container-runtime=remote --container-runtime-endpoint=unix:///var/run/cri-dockerd.sock --v=2\"\n"}),
			"unix:///run/cri-dockerd.sock",
			map[string]string{flagsEnv: "KUBELET_KUBEADM_ARGS=\"--container-runtime=remote --container-runtime-endpoint=" + newEndpoint + " --v=2\"\n"},
		},
		{
			"the flag in both files", "v1.26.0",
			kubeadm(map[string]string{
				flagsEnv: "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=/var/run/cri-dockerd.sock\"\n",
				extraEnv: "KUBELET_EXTRA_ARGS=--container_runtime_endpoint=unix:///run/cri-dockerd.sock\n",
			}),
			"unix:///run/cri-dockerd.sock",
			map[string]string{
				flagsEnv: "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=" + newEndpoint + "\"\n",
				extraEnv: "KUBELET_EXTRA_ARGS=--container-runtime-endpoint=" + newEndpoint + "\n",
			},
		},
		{
			"1.30: the flag, and a stale field in the file", "v1.30.1",
			kubeadm(map[string]string{
				flagsEnv:  "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///var/run/cri-dockerd.sock --pod-infra-container-image=x\"\n",
				config124: "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"\"\nimageServiceEndpoint: unix:///run/cri-dockerd.sock # why\n",
			}),
			"unix:///run/cri-dockerd.sock",
			map[string]string{
				flagsEnv:  "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=" + newEndpoint + " --pod-infra-container-image=x\"\n",
				config124: "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"\"\nimageServiceEndpoint: " + newEndpoint + "\n",
			},
		},
		{
			"1.37: config.yaml and instance-config.yaml", "v1.37.2",
			kubeadm(map[string]string{
				flagsEnv:              "KUBELET_KUBEADM_ARGS=\"\"\n",
				config124:             "# kubeadm's\nkind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/cri-dockerd.sock\nfailCgroupV1: false",
				DefaultInstanceConfig: "containerRuntimeEndpoint: \"unix:///run/cri-dockerd.sock\"\n",
			}),
			"unix:///run/cri-dockerd.sock",
			map[string]string{
				config124:             "# kubeadm's\nkind: KubeletConfiguration\ncontainerRuntimeEndpoint: " + newEndpoint + "\nfailCgroupV1: false",
				DefaultInstanceConfig: "containerRuntimeEndpoint: " + newEndpoint + "\n",
			},
		},
		{
			"1.31: a drop-in of --config-dir overrides the file", "v1.31.0",
			kubeadm(map[string]string{
				extraEnv:                   "KUBELET_EXTRA_ARGS=--config-dir=/etc/kubelet.d\n",
				"/etc/kubelet.d/10-x.conf": "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/cri-dockerd.sock\n",
				"/etc/kubelet.d/20-y.conf": "kind: KubeletConfiguration\nmaxPods: 7\n",
			}),
			"unix:///run/cri-dockerd.sock",
			map[string]string{
				config124:                  "kind: KubeletConfiguration\ncgroupDriver: systemd\ncontainerRuntimeEndpoint: " + newEndpoint + "\n",
				"/etc/kubelet.d/10-x.conf": "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: " + newEndpoint + "\n",
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := setup(t, test.version, test.files)
			if old, err := s.Endpoint(); err != nil || old != test.old {
				t.Errorf("old endpoint %q, want %q (%v)", old, test.old, err)
			}
			plan, err := s.Plan(newEndpoint)
			if err != nil {
				t.Fatal(err)
			}
			if test.name == "docker flags in the admin's file, spread and with spaces" {
				test.want[extraEnv] = "KUBELET_EXTRA_ARGS='--node-ip 10.0.0.1 \\\n  --v=2' # not a comment\n"
			}
			got := map[string]string{}
			for _, edit := range plan {
				got[edit.Path] = string(edit.New)
				if string(edit.Old) != test.files[edit.Path] {
					t.Errorf("%s: old content is %q", edit.Path, edit.Old)
				}
			}
			for _, path := range slices.Sorted(maps.Keys(got)) {
				if got[path] != test.want[path] {
					t.Errorf("%s is\n%q, want\n%q", path, got[path], test.want[path])
				}
			}
			if len(got) != len(test.want) {
				t.Errorf("changed %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(test.want)))
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	const flags = "KUBELET_KUBEADM_ARGS=\"--network-plugin=cni\"\n"
	for _, test := range []struct {
		name, version string
		files         map[string]string
		running       []string
		want          []string
	}{
		{
			"edited since the kubelet started", "v1.23.17", kubeadm(map[string]string{flagsEnv: flags}),
			[]string{"/usr/bin/kubelet", "--network-plugin=kubenet"},
			[]string{dropIn, "--bootstrap-kubeconfig", "--network-plugin=kubenet"},
		},
		{
			"a wrapper script", "v1.23.17",
			map[string]string{dropIn: "[Service]\nExecStart=/opt/start-kubelet\n"},
			[]string{"/usr/bin/kubelet", "--v=2"},
			[]string{dropIn, "--v=2"},
		},
		{
			"flags in a package's unit", "v1.23.17",
			map[string]string{unitFile: "[Service]\nExecStart=/usr/bin/kubelet --container-runtime=docker --container-runtime-endpoint=unix:///x\n"},
			nil,
			[]string{unitFile, "package"},
		},
		{
			"no place for a new flag", "v1.23.17",
			map[string]string{unitFile: "[Service]\nExecStart=/usr/bin/kubelet --v=2\n"},
			nil,
			[]string{"--container-runtime=remote", "no"},
		},
		{
			"config in YAML's other style", "v1.37.2", kubeadm(map[string]string{config124: `{kind: KubeletConfiguration, containerRuntimeEndpoint: "unix:///run/cri-dockerd.sock"}`}),
			nil,
			[]string{config124},
		},
		{
			"a comment whose end depends on systemd's version", "v1.23.17", kubeadm(map[string]string{flagsEnv: "# a \\\n" + flags}),
			nil,
			[]string{flagsEnv},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := maps.Clone(test.files)
			if strings.HasPrefix(files[flagsEnv], "#") {
				files[flagsEnv] = flags
			}
			s := setup(t, test.version, files)
			s.Read = reader(test.files)
			if test.running != nil {
				s.Args = test.running
			}
			plan, err := s.Plan(newEndpoint)
			if err == nil {
				t.Fatalf("planned %v", plan)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %q", err, want)
				}
			}
		})
	}
}

// TestEndpoint is FACTS about the kubelet: what its flags and file mean by version.
func TestEndpoint(t *testing.T) {
	for _, test := range []struct{ version, flags, config, want string }{
		{"v1.18.0", "", "", Dockershim},
		{"v1.23.17", "--container-runtime-endpoint=" + newEndpoint, "", Dockershim}, // and it steals that socket
		{"v1.23.17", "--container-runtime=remote --container-runtime-endpoint=/run/x.sock", "", "unix:///run/x.sock"},
		{"v1.24.0", "--container-runtime-endpoint /var/run/cri-dockerd.sock", "", "unix:///run/cri-dockerd.sock"},
		{"v1.26.0", "--container-runtime-endpoint=unix:///a --container-runtime-endpoint=unix:///b", "", "unix:///b"},
		{"v1.27.0", "", "", newEndpoint},
		{"v1.27.0", "", "containerRuntimeEndpoint: unix:///c", "unix:///c"},
		{"v1.27.0", "--container-runtime-endpoint=unix:///d", "containerRuntimeEndpoint: unix:///c", "unix:///d"},
	} {
		files := kubeadm(map[string]string{extraEnv: "KUBELET_EXTRA_ARGS=\"" + test.flags + "\"\n", config124: test.config})
		if got, err := setup(t, test.version, files).Endpoint(); err != nil || got != test.want {
			t.Errorf("%s %q %q: %q, want %q (%v)", test.version, test.flags, test.config, got, test.want, err)
		}
	}
}

func TestDriverAndHealth(t *testing.T) {
	for _, test := range []struct{ flags, config, driver, url string }{
		{"", "", "cgroupfs", "http://127.0.0.1:10248/healthz"},
		{"", "cgroupDriver: systemd\nhealthzPort: 1", "systemd", "http://127.0.0.1:1/healthz"},
		{"--cgroup-driver=cgroupfs --healthz-port=2", "cgroupDriver: systemd\nhealthzPort: 1", "cgroupfs", "http://127.0.0.1:2/healthz"},
		{"", "healthzPort: 0", "cgroupfs", ""},
		{"", "healthzBindAddress: '::'", "cgroupfs", "http://[::1]:10248/healthz"},
	} {
		s := setup(t, "v1.30.0", kubeadm(map[string]string{extraEnv: "KUBELET_EXTRA_ARGS=\"" + test.flags + "\"\n", config124: test.config}))
		driver, err := s.CgroupDriver()
		if err != nil || driver != test.driver {
			t.Errorf("%q %q: driver %q (%v)", test.flags, test.config, driver, err)
		}
		if url, err := s.HealthzURL(); err != nil || url != test.url {
			t.Errorf("%q %q: %q (%v)", test.flags, test.config, url, err)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for text, minor := range map[string]int{"Kubernetes v1.23.17\n": 23, "v1.37.2": 37, "v1.27.3-gke.100": 27, "v1.28.1+k3s1": 28} {
		if v, err := ParseVersion(text); err != nil || v.Minor != minor {
			t.Errorf("%q: %+v %v", text, v, err)
		}
	}
	for _, text := range []string{"", "v2.1.0", "Kubernetes v1.x.2"} {
		if v, err := ParseVersion(text); err == nil {
			t.Errorf("%q: %+v", text, v)
		}
	}
}
