package kubelet

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestShapes are kubelets as installers set them up. old and new say what changes in which file: OLD -> NEW, everything else stays.
func TestShapes(t *testing.T) {
	const remote = "--container-runtime=remote --container-runtime-endpoint=" + newEndpoint
	const admins = "/etc/systemd/system/kubelet.service"
	for _, test := range []struct {
		name, version string
		units         []string
		files         map[string]string
		old           string
		// edits are by file: what is there, what it becomes.
		edits map[string][2]string
		logs  int64
	}{
		{
			"EKS 1.21: two words for a flag, config in JSON", "v1.21.14-eks-48e63af",
			[]string{admins, admins + ".d/10-kubelet-args.conf", admins + ".d/30-kubelet-extra-args.conf"},
			map[string]string{
				admins: "[Unit]\nAfter=docker.service\nRequires=docker.service\n\n[Service]\nExecStartPre=/sbin/iptables -P FORWARD ACCEPT -w 5\n" +
					"ExecStart=/usr/bin/kubelet --cloud-provider aws \\\n    --config /etc/kubernetes/kubelet/kubelet-config.json \\\n" +
					"    --kubeconfig /var/lib/kubelet/kubeconfig \\\n    --container-runtime docker \\\n    --network-plugin cni $KUBELET_ARGS $KUBELET_EXTRA_ARGS\n\nRestart=on-failure\n",
				admins + ".d/10-kubelet-args.conf":            "[Service]\nEnvironment='KUBELET_ARGS=--node-ip=192.0.2.1 --pod-infra-container-image=602401143452.dkr.ecr.eu-west-1.amazonaws.com/eks/pause:3.5 --v=2'\n",
				admins + ".d/30-kubelet-extra-args.conf":      "[Service]\nEnvironment='KUBELET_EXTRA_ARGS=--node-labels=a=b --max-pods=29'\n",
				"/etc/kubernetes/kubelet/kubelet-config.json": "{\n  \"kind\": \"KubeletConfiguration\",\n  \"cgroupDriver\": \"cgroupfs\",\n  \"maxPods\": 29\n}\n",
			},
			Dockershim,
			map[string][2]string{
				admins: {
					"--container-runtime docker \\\n    --network-plugin cni $KUBELET_ARGS $KUBELET_EXTRA_ARGS",
					"--container-runtime remote $KUBELET_ARGS $KUBELET_EXTRA_ARGS --container-runtime-endpoint=" + newEndpoint,
				},
				"/etc/kubernetes/kubelet/kubelet-config.json": {"{\n", "{\n  \"containerLogMaxFiles\": 2,\n  \"containerLogMaxSize\": \"10M\",\n"},
			},
			10_000_000,
		},
		{
			"kubespray on Docker", "v1.19.7",
			[]string{admins},
			map[string]string{
				admins: "[Service]\nEnvironmentFile=-/etc/kubernetes/kubelet.env\nExecStart=/usr/local/bin/kubelet \\\n\t\t$KUBE_LOGTOSTDERR \\\n\t\t$KUBE_LOG_LEVEL \\\n" +
					"\t\t$KUBELET_API_SERVER \\\n\t\t$KUBELET_ADDRESS \\\n\t\t$KUBELET_ARGS \\\n\t\t$DOCKER_SOCKET \\\n\t\t$KUBELET_NETWORK_PLUGIN \\\n\t\t$KUBELET_CLOUDPROVIDER\nRestart=always\n",
				"/etc/kubernetes/kubelet.env": "KUBE_LOGTOSTDERR=\"--logtostderr=true\"\nKUBE_LOG_LEVEL=\"--v=2\"\nKUBELET_ADDRESS=\"--node-ip=192.0.2.7\"\nKUBELET_HOSTNAME=\"--hostname-override=node1\"\n\n\n" +
					"KUBELET_ARGS=\"--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \\\n--config=/etc/kubernetes/kubelet-config.yaml \\\n--kubeconfig=/etc/kubernetes/kubelet.conf \\\n" +
					"--pod-infra-container-image=k8s.gcr.io/pause:3.3 \\\n--runtime-cgroups=/systemd/system.slice \\\n   \"\nKUBELET_NETWORK_PLUGIN=\"--network-plugin=cni --cni-conf-dir=/etc/cni/net.d --cni-bin-dir=/opt/cni/bin\"\n" +
					"KUBELET_CLOUDPROVIDER=\"\"\n\nPATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin\n",
				"/etc/kubernetes/kubelet-config.yaml": "kind: KubeletConfiguration\n",
			},
			Dockershim,
			map[string][2]string{"/etc/kubernetes/kubelet.env": {
				"\"--network-plugin=cni --cni-conf-dir=/etc/cni/net.d --cni-bin-dir=/opt/cni/bin\"\nKUBELET_CLOUDPROVIDER=\"\"", "\"\"\nKUBELET_CLOUDPROVIDER=\"" + remote + "\"",
			}},
			0,
		},
		{
			"kubespray on cri-dockerd", "v1.26.5",
			[]string{admins},
			map[string]string{
				admins:                                "[Service]\nEnvironmentFile=-/etc/kubernetes/kubelet.env\nExecStart=/usr/local/bin/kubelet \\\n\t\t$KUBE_LOG_LEVEL \\\n\t\t$KUBELET_ARGS\n",
				"/etc/kubernetes/kubelet.env":         "KUBE_LOG_LEVEL=\"--v=2\"\nKUBELET_ARGS=\"--config=/etc/kubernetes/kubelet-config.yaml \\\n--container-runtime-endpoint=unix:///var/run/cri-dockerd.sock \\\n--runtime-cgroups=/system.slice/cri-dockerd.service \\\n   \"\n",
				"/etc/kubernetes/kubelet-config.yaml": "kind: KubeletConfiguration\ncgroupDriver: systemd\n",
			},
			"unix:///run/cri-dockerd.sock",
			map[string][2]string{"/etc/kubernetes/kubelet.env": {"unix:///var/run/cri-dockerd.sock", newEndpoint}},
			0,
		},
		{
			"AKS: labels in quotes, all flags in one line", "v1.18.10",
			[]string{admins},
			map[string]string{
				admins: "[Unit]\nConditionPathExists=/usr/local/bin/kubelet\n[Service]\nRestart=always\nEnvironmentFile=/etc/default/kubelet\nSuccessExitStatus=143\nExecStartPre=/bin/bash /opt/azure/containers/kubelet.sh\n" +
					"ExecStart=/usr/local/bin/kubelet \\\n        --enable-server \\\n        --node-labels=\"${KUBELET_NODE_LABELS}\" \\\n        --v=2 --container-runtime=docker \\\n        --volume-plugin-dir=/etc/kubernetes/volumeplugins \\\n        $KUBELET_FLAGS \\\n        $KUBELET_REGISTER_NODE\n",
				"/etc/default/kubelet": "KUBELET_FLAGS=--address=0.0.0.0 --anonymous-auth=false --kubeconfig=/var/lib/kubelet/kubeconfig --network-plugin=cni --pod-infra-container-image=mcr.microsoft.com/oss/kubernetes/pause:1.3.1\n" +
					"KUBELET_REGISTER_SCHEDULABLE=true\nKUBELET_NODE_LABELS=kubernetes.azure.com/role=agent,agentpool=nodepool1\n",
			},
			Dockershim,
			map[string][2]string{
				admins: {"--container-runtime=docker", "--container-runtime=remote"},
				"/etc/default/kubelet": {
					"KUBELET_FLAGS=--address=0.0.0.0 --anonymous-auth=false --kubeconfig=/var/lib/kubelet/kubeconfig --network-plugin=cni --pod-infra-container-image=mcr.microsoft.com/oss/kubernetes/pause:1.3.1\n",
					"KUBELET_FLAGS=\"--address=0.0.0.0 --anonymous-auth=false --kubeconfig=/var/lib/kubelet/kubeconfig --pod-infra-container-image=mcr.microsoft.com/oss/kubernetes/pause:1.3.1 --container-runtime-endpoint=" + newEndpoint + "\"\n",
				},
			},
			0,
		},
		{
			"kops: a variable in quotes", "v1.20.6",
			[]string{admins},
			map[string]string{
				admins:                   "[Service]\nEnvironmentFile=/etc/sysconfig/kubelet\nExecStart=/usr/local/bin/kubelet \"$DAEMON_ARGS\"\nRestart=always\n",
				"/etc/sysconfig/kubelet": "DAEMON_ARGS=\"--cgroup-root=/ --container-runtime=docker --docker-endpoint=unix:///run/docker.sock --network-plugin=cni --v=2\"\nHOME=\"/root\"",
			},
			Dockershim,
			map[string][2]string{"/etc/sysconfig/kubelet": {
				"--container-runtime=docker --docker-endpoint=unix:///run/docker.sock --network-plugin=cni --v=2",
				"--container-runtime=remote --v=2 --container-runtime-endpoint=" + newEndpoint,
			}},
			0,
		},
		{
			"kubeadm of 1.10, upgraded ever since", "v1.22.17",
			[]string{unitFile, dropIn},
			map[string]string{
				unitFile: kubeadmUnit,
				dropIn: "[Service]\nEnvironment=\"KUBELET_KUBECONFIG_ARGS=--kubeconfig=/etc/kubernetes/kubelet.conf\"\n" +
					"Environment=\"KUBELET_NETWORK_ARGS=--network-plugin=cni --cni-conf-dir=/etc/cni/net.d --cni-bin-dir=/opt/cni/bin\"\nEnvironment=\"KUBELET_CGROUP_ARGS=--cgroup-driver=cgroupfs\"\n" +
					"ExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_NETWORK_ARGS $KUBELET_CGROUP_ARGS $KUBELET_EXTRA_ARGS\n",
			},
			Dockershim,
			map[string][2]string{dropIn: {
				"KUBELET_NETWORK_ARGS=--network-plugin=cni --cni-conf-dir=/etc/cni/net.d --cni-bin-dir=/opt/cni/bin\"\nEnvironment=\"KUBELET_CGROUP_ARGS=--cgroup-driver=cgroupfs\"\n" +
					"ExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_NETWORK_ARGS $KUBELET_CGROUP_ARGS $KUBELET_EXTRA_ARGS",
				"KUBELET_NETWORK_ARGS=\"\nEnvironment=\"KUBELET_CGROUP_ARGS=--cgroup-driver=cgroupfs\"\n" +
					"ExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_NETWORK_ARGS $KUBELET_CGROUP_ARGS $KUBELET_EXTRA_ARGS " + remote,
			}},
			0,
		},
		{
			"Kubernetes the hard way", "v1.21.0",
			[]string{admins},
			map[string]string{
				admins: "[Unit]\nRequires=docker.service\n\n[Service]\nExecStart=/usr/local/bin/kubelet \\\n  --config=/var/lib/kubelet/kubelet-config.yaml \\\n" +
					"  --docker=unix:///var/run/docker.sock \\\n  --image-pull-progress-deadline=2m \\\n  --kubeconfig=/var/lib/kubelet/kubeconfig \\\n  --network-plugin=cni \\\n  --register-node=true \\\n  --v=2\nRestart=on-failure\n",
				"/var/lib/kubelet/kubelet-config.yaml": "kind: KubeletConfiguration\n",
			},
			Dockershim,
			map[string][2]string{admins: {
				"  --docker=unix:///var/run/docker.sock \\\n  --image-pull-progress-deadline=2m \\\n  --kubeconfig=/var/lib/kubelet/kubeconfig \\\n  --network-plugin=cni \\\n  --register-node=true \\\n  --v=2",
				"  --kubeconfig=/var/lib/kubelet/kubeconfig \\\n  --register-node=true \\\n  --v=2 " + remote,
			}},
			0,
		},
		{
			"minikube without a VM", "v1.23.3",
			[]string{unitFile, dropIn},
			map[string]string{
				unitFile: kubeadmUnit,
				dropIn: "[Unit]\nWants=docker.socket\n\n[Service]\nExecStart=\nExecStart=/var/lib/minikube/binaries/v1.23.3/kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf " +
					"--config=/var/lib/kubelet/config.yaml --container-runtime=docker --hostname-override=m01 --kubeconfig=/etc/kubernetes/kubelet.conf --node-ip=192.0.2.4\n\n[Install]\n",
				config124: "kind: KubeletConfiguration\n",
			},
			Dockershim,
			map[string][2]string{dropIn: {
				"--container-runtime=docker --hostname-override=m01 --kubeconfig=/etc/kubernetes/kubelet.conf --node-ip=192.0.2.4",
				"--container-runtime=remote --hostname-override=m01 --kubeconfig=/etc/kubernetes/kubelet.conf --node-ip=192.0.2.4 --container-runtime-endpoint=" + newEndpoint,
			}},
			0,
		},
		{
			"an environment file from Windows", "v1.24.17",
			[]string{unitFile, dropIn},
			kubeadm(map[string]string{
				flagsEnv: "KUBELET_KUBEADM_ARGS=\"--container-runtime=remote --container-runtime-endpoint=/var/run/cri-dockerd.sock\"\r\n",
				extraEnv: "; old\r\nKUBELET_EXTRA_ARGS=--v=2\r\n",
			}),
			"unix:///run/cri-dockerd.sock",
			map[string][2]string{flagsEnv: {"/var/run/cri-dockerd.sock", newEndpoint}},
			0,
		},
		{
			"1.31: config in one line of JSON", "v1.31.2",
			[]string{unitFile, dropIn},
			kubeadm(map[string]string{config124: `{"kind":"KubeletConfiguration","containerRuntimeEndpoint":"unix:///run/cri-dockerd.sock","maxPods":5}`}),
			"unix:///run/cri-dockerd.sock",
			map[string][2]string{config124: {"unix:///run/cri-dockerd.sock", newEndpoint}},
			0,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			version, err := ParseVersion(test.version)
			if err != nil {
				t.Fatal(err)
			}
			s := Setup{Version: version, UnitFiles: test.units, Read: reader(test.files), LogMaxSize: test.logs}
			svc, err := loadService(s.Read, s.UnitFiles)
			if err != nil {
				t.Fatal(err)
			}
			s.Args = svc.args()
			if old, err := s.Endpoint(); err != nil || old != test.old {
				t.Errorf("old endpoint %q, want %q (%v)", old, test.old, err)
			}
			plan, err := s.Plan(newEndpoint)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, edit := range plan {
				got[edit.Path] = string(edit.New)
			}
			want := map[string]string{}
			for path, edit := range test.edits {
				if strings.Count(test.files[path], edit[0]) != 1 {
					t.Fatalf("%s does not hold %q once", path, edit[0])
				}
				want[path] = strings.Replace(test.files[path], edit[0], edit[1], 1)
			}
			for _, path := range slices.Sorted(maps.Keys(want)) {
				if got[path] != want[path] {
					t.Errorf("%s is\n%q, want\n%q", path, got[path], want[path])
				}
			}
			if len(got) != len(want) {
				t.Errorf("changed %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
			}
		})
	}
}

func TestSetYAMLInJSON(t *testing.T) {
	for before, want := range map[string]string{
		"{}":                                  `{"f": "v"}`,
		"{ \n}\n":                             "{\"f\": \"v\" \n}\n",
		"{\"a\": {\"f\": 1}, \"f\" : \"x\"}":  "{\"a\": {\"f\": 1}, \"f\" : \"v\"}",
		"{\n\t\"a\": [\"}\"],\n\t\"b\": 2\n}": "{\n\t\"f\": \"v\",\n\t\"a\": [\"}\"],\n\t\"b\": 2\n}",
	} {
		got, err := setYAML([]byte(before), "f", "v")
		if err != nil || string(got) != want {
			t.Errorf("%q became %q (%v), want %q", before, got, err, want)
		}
	}
	if got, err := setYAML([]byte(`{"a": 1}`), "f", "3"); err != nil || string(got) != `{"f": 3,"a": 1}` {
		t.Errorf("a number: %q (%v)", got, err)
	}
	for _, bad := range []string{"[]", "3", "{a: 1}"} {
		if got, err := setYAML([]byte(bad), "f", "v"); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}
