package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func mirrorServes(t *testing.T, n *dressed, on runtime) {
	tag := n.push(t, "library/mirrored", on)
	n.runs(t, pod{name: "mirrored", image: "docker.io/library/mirrored:" + tag})
	n.wantPulled(t, n.plain, "library/mirrored", tag)
}

func plainRegistry(t *testing.T, n *dressed, on runtime) {
	tag := n.push(t, "plain", on)
	n.runs(t, pod{name: "plain", image: n.plain.Address + "/plain:" + tag})
	n.wantPulled(t, n.plain, "plain", tag)
}

// privateRegistry has an image that is let go only with a password, over TLS whose certificate nobody but Docker knows.
func privateRegistry(t *testing.T, n *dressed, on runtime) {
	tag := n.push(t, "private", on)
	n.runs(t, pod{name: "private", image: n.private.Address + "/private:" + tag, secret: "private"})
	n.wantPulled(t, n.private, "private", tag)

	name, remove := n.create(t, pod{name: "stranger", image: n.private.Address + "/hidden:" + n.push(t, "hidden", on)})
	defer remove()
	eventually(t, time.Minute, func() string {
		if waits := n.waits(t, name); !strings.Contains(waits, "ErrImagePull") && !strings.Contains(waits, "ImagePullBackOff") {
			return "a pod without the password: " + waits
		}
		return ""
	})
}

// proxyServes has an image of a registry that only the proxy knows. It is asked for over HTTPS first, then over HTTP.
func proxyServes(t *testing.T, n *dressed, on runtime) {
	tag := n.push(t, "proxied", on)
	n.runs(t, pod{name: "proxied", image: "proxied.test/proxied:" + tag})
	n.proxy.wantAsked(t, "CONNECT proxied.test:443")
	n.proxy.wantAsked(t, "proxied.test /v2/proxied/manifests/"+tag)
	n.proxy.wantAsked(t, "proxied.test /v2/proxied/blobs/sha256:")
	if on == onDocker {
		return
	}
	environment := n.exec(t, n.node, "systemctl show containerd -p Environment")
	if !regexp.MustCompile(`NO_PROXY=\S*\b10\.88\.0\.1\b`).MatchString(environment) {
		t.Errorf("the API server is not excepted from the proxy: %s", environment)
	}
}

// wrapperRuns looks at what the runtime, a script, noted down.
func wrapperRuns(t *testing.T, n *dressed, on runtime) {
	const mark = "/var/log/marked-runc.log"
	calls := func(what string) int {
		count, err := strconv.Atoi(n.exec(t, n.node, "grep -c -- '"+what+"' "+mark+" || true"))
		if err != nil {
			t.Fatal(err)
		}
		return count
	}
	before := calls(" create ")
	n.runs(t, pod{name: "wrapped", image: "lab.local/busybox:1"})
	if now := calls(" create "); now < before+2 {
		t.Errorf("a pod's sandbox and container were not made by the wrapper: %d calls, %d before", now, before)
	}
	if on == onDocker {
		return // dockershim and cri-dockerd know no other handler than Docker's default
	}
	n.runs(t, pod{name: "verbose", image: "lab.local/busybox:1", handler: "verbose"})
	if calls("^--debug .* create ") == 0 {
		t.Error("the handler verbose does not run with --debug")
	}
}

// logsRotate writes 5 MB where Docker kept three files of 1 MB.
func logsRotate(t *testing.T, n *dressed, on runtime) {
	pause := "0.3" // the kubelet looks every ten seconds
	if on == onDocker {
		pause = "0"
	}
	name, remove := n.create(t, pod{
		name: "talks", image: "lab.local/busybox:1",
		line: "i=0; while [ $i -lt 50 ]; do head -c 75000 /dev/zero | base64; i=$((i+1)); sleep " + pause + "; done; " +
			// Not once: the last line may be in the file that was just put aside.
			"i=0; while [ $i -lt 60 ]; do echo END; i=$((i+1)); sleep 2; done",
	})
	defer remove()
	eventually(t, 2*time.Minute, func() string {
		if log := n.run(t, "-n", overlayNamespace, "logs", name, "--tail", "1"); strings.TrimSpace(log.stdout) != "END" {
			return n.waits(t, name) + " has not written all: " + log.stderr
		}
		return ""
	})
	files := "ls -l /var/log/pods/overlays_" + name + "_*/main/ | awk 'NR > 1 { print $5, $9 }'"
	if on == onDocker {
		files = "ls -l $(dirname $(docker inspect -f '{{.LogPath}}' $(docker ps -q --filter label=io.kubernetes.pod.name=" + name +
			" --filter label=io.kubernetes.docker.type=container))) | awk '/json.log/ { print $5, $9 }'"
	}
	eventually(t, 30*time.Second, func() string {
		listing := n.exec(t, n.node, files)
		// How large they are is up to who writes: the kubelet looks every ten seconds only.
		if lines := strings.Split(listing, "\n"); len(lines) < 2 || len(lines) > 3 {
			return "the log's files are\n" + listing
		}
		return ""
	})
}

func openFiles(soft, hard int) func(*testing.T, *dressed, runtime) {
	return func(t *testing.T, n *dressed, _ runtime) {
		log := n.runs(t, pod{name: "limits", image: "lab.local/busybox:1", line: "grep 'Max open files' /proc/self/limits"})
		if got, want := strings.Fields(log), fmt.Sprintf("Max open files %d %d files", soft, hard); strings.Join(got, " ") != want {
			t.Errorf("in a container: %q, want %q", log, want)
		}
	}
}

func unprivilegedNetwork(t *testing.T, n *dressed, _ runtime) {
	log := n.runs(t, pod{name: "network", image: "lab.local/busybox:1", line: "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range"})
	if got := strings.Join(strings.Fields(log), " "); got != "0 0 2147483647" {
		t.Errorf("in a container, the first port of everyone and the groups that may ping are %q", got)
	}
}

func kubeletFlags(label string, flags ...string) func(*testing.T, *dressed, runtime) {
	return func(t *testing.T, n *dressed, _ runtime) {
		key, value, _ := strings.Cut(label, "=")
		if got := n.kubectl(t, "get", "node", n.node, "-o", "jsonpath={.metadata.labels."+key+"}"); got != value {
			t.Errorf("the node's label %s is %q, want %q", key, got, value)
		}
		args := strings.Split(n.exec(t, n.node, `tr '\0' '\n' < /proc/$(systemctl show -p MainPID --value kubelet)/cmdline`), "\n")
		for _, flag := range append(flags, "--node-labels="+label) {
			if !strings.Contains("\n"+strings.Join(args, "\n")+"\n", "\n"+flag+"\n") {
				t.Errorf("the kubelet runs without %s: %q", flag, args)
			}
			if pods, ok := strings.CutPrefix(flag, "--max-pods="); ok {
				if got := n.kubectl(t, "get", "node", n.node, "-o", "jsonpath={.status.capacity.pods}"); got != pods {
					t.Errorf("the node takes %s pods, want %s", got, pods)
				}
			}
		}
	}
}

func cgroupfs(t *testing.T, n *dressed, on runtime) {
	log := n.runs(t, pod{name: "cgroup", image: "lab.local/busybox:1", line: "grep -e memory -e '^0:' /proc/self/cgroup"})
	if !strings.Contains(log, "/kubepods/") || strings.Contains(log, ".slice/") {
		t.Errorf("in a container: %q", log)
	}
	if on == onContainerd {
		if out := n.exec(t, n.node, "grep SystemdCgroup /etc/containerd/config.toml"); strings.Contains(out, "true") {
			t.Errorf("containerd's config has\n%s", out)
		}
	}
}

func liveRestore(t *testing.T, n *dressed, on runtime) {
	if on == onDocker {
		if out := n.exec(t, n.node, "docker info -f '{{.LiveRestoreEnabled}}'"); out != "true" {
			t.Errorf("live-restore is %s", out)
		}
		return
	}
	if out := n.exec(t, n.node, "pgrep -af 'containerd-shim.*-namespace [m]oby' || true"); out != "" {
		t.Errorf("shims of Docker's live on:\n%s", out)
	}
}

// dataRoot runs an image that may not be pulled.
func dataRoot(root string) func(*testing.T, *dressed, runtime) {
	return func(t *testing.T, n *dressed, on runtime) {
		images := n.exec(t, n.node, "ls "+root+"/image/overlay2/imagedb/content/sha256 | wc -l")
		if count, err := strconv.Atoi(images); err != nil || count < 4 {
			t.Errorf("%s holds %s images", root, images)
		}
		n.runs(t, pod{name: "local", image: "lab.local/busybox:1"})
		if on == onDocker {
			if out := n.exec(t, n.node, "docker info -f '{{.DockerRootDir}}'"); out != root {
				t.Errorf("Docker's root is %s, want %s", out, root)
			}
		} else if root != "/srv/linked" && !strings.Contains(n.said, "data-root") {
			t.Errorf("the switch does not warn of data-root:\n%s", n.said)
		}
	}
}

func criEnabled(t *testing.T, n *dressed, on runtime) {
	disabled := n.exec(t, n.node, "grep -c ^disabled_plugins /etc/containerd/config.toml || true") != "0"
	if disabled != (on == onDocker) {
		t.Errorf("on %s: disabled_plugins is there: %t", on, disabled)
	}
}

// ownConfig has pods prove what is in the admin's config.toml and in the drop-in that it imports.
func ownConfig(t *testing.T, n *dressed, on runtime) {
	if on == onDocker {
		return // containerd's CRI serves nobody
	}
	tag := n.push(t, "inline", on)
	name, remove := n.create(t, pod{name: "inline", image: "inline.test/inline:" + tag, handler: "extra", line: "head -c 2500 /dev/zero | tr '\\0' x; echo"})
	defer remove()
	eventually(t, time.Minute, func() string { return n.waits(t, name) })
	n.wantPulled(t, n.plain, "inline", tag)
	if out := n.exec(t, n.node, "grep -c ' create ' /var/log/extra-runc.log"); out != "2" {
		t.Errorf("the handler of the drop-in made %s containers, want sandbox and container", out)
	}
	eventually(t, 20*time.Second, func() string {
		lines := n.exec(t, n.node, "awk '{ print $3, length($4) }' /var/log/pods/overlays_"+name+"_*/main/0.log")
		if lines != "P 1000\nP 1000\nF 500" {
			return "a line of 2500 bytes is in the log as\n" + lines
		}
		return ""
	})
	if out := n.exec(t, n.node, "grep -A1 '^.debug' /etc/containerd/config.toml"); !strings.Contains(out, "warn") {
		t.Errorf("containerd's log level is gone: %s", out)
	}
	out := n.exec(t, n.node, "cat /etc/containerd/config.toml")
	for _, comment := range []string{"# Ours since we built", "# as nvidia-ctk wants it\n", "# the log shipper cuts there\nmax_container_log_line_size = 1000"} {
		if strings.Count(out, comment) != 1 {
			t.Errorf("the comment %q is there %d times in\n%s", comment, strings.Count(out, comment), out)
		}
	}
}

const privatePause = "10.88.0.1:5443/infra/pause:private"

// privateSandbox has Docker's side of the kubelet use a sandbox image from the registry with a password, which it knows from
// Docker's own file.
func privateSandbox(t *testing.T, n *dressed) {
	n.exec(t, n.spare, `pause=$(docker images -q 'registry.k8s.io/pause') && plain=10.88.0.1:5000/infra/pause:private &&
		docker tag $pause $plain && docker push -q $plain && docker rmi $plain`)
	n.exec(t, n.node, `mkdir -p /.docker && printf '{"auths": {"10.88.0.1:5443": {"auth": "%s"}}}' $(printf lab:secret | base64) > /.docker/config.json && chmod 600 /.docker/config.json
		if [ -e /usr/lib/systemd/system/cri-docker.service ]; then
			mkdir -p /etc/systemd/system/cri-docker.service.d
			printf '[Service]\nExecStart=\nExecStart=/usr/bin/cri-dockerd --container-runtime-endpoint fd:// --pod-infra-container-image `+privatePause+`\n' > /etc/systemd/system/cri-docker.service.d/pause.conf
			systemctl daemon-reload && systemctl restart cri-docker
		else
			sed -i 's|--pod-infra-container-image=[^ ]*|--pod-infra-container-image=`+privatePause+`|' /etc/kubernetes/kubelet.env && systemctl restart kubelet
		fi`)
}

// sandboxImage has the runtime pull that image itself, with the credentials that were carried over.
func sandboxImage(t *testing.T, n *dressed, on runtime) {
	if on == onDocker {
		name, remove := n.create(t, pod{name: "sandbox", image: "lab.local/busybox:1"})
		defer remove()
		eventually(t, 90*time.Second, func() string { return n.waits(t, name) })
		out := n.exec(t, n.node, "docker ps --filter label=io.kubernetes.pod.name="+name+" --filter label=io.kubernetes.docker.type=podsandbox --format '{{.Image}}'")
		if out != privatePause {
			t.Errorf("the sandbox is made of %s", out)
		}
		return
	}
	if out := n.exec(t, n.node, "crictl images | grep infra/pause; crictl rmi "+privatePause+"; stat -c %a /etc/containerd/config.toml"); !strings.HasPrefix(out, "10.88.0.1:5443/infra/pause ") || !strings.HasSuffix(out, "\n600") {
		t.Errorf("the image and its password are kept so: %s", out)
	}
	seen := n.served(t, n.private, "/v2/infra/pause/blobs/")
	n.runs(t, pod{name: "sandbox", image: "lab.local/busybox:1"})
	if now := n.served(t, n.private, "/v2/infra/pause/blobs/"); now <= seen {
		t.Errorf("containerd has pulled nothing: %d, %d before", now, seen)
	}
}

// directoryAtSocket has a pod mount Docker's socket, with no type said, where there is none: the runtime makes a directory there, on
// which no daemon could listen.
func directoryAtSocket(t *testing.T, n *dressed) {
	n.exec(t, n.node, "rm -f /run/docker.sock")
	n.runs(t, pod{name: "watcher", image: "lab.local/busybox:1", mount: "/var/run/docker.sock"})
	if out := n.exec(t, n.node, "stat -c %F /run/docker.sock"); out != "directory" {
		t.Errorf("/run/docker.sock is a %s: the test shows nothing", out)
	}
}

// reboot boots the node again, with all written out as in a shutdown, and waits until it is Ready with its pods.
func reboot(t *testing.T, n *dressed) {
	t.Helper()
	if err := n.Sync(n.node); err != nil {
		t.Fatal(err)
	}
	if err := n.PowerOff(n.node); err != nil {
		t.Fatal(err)
	}
	booted := time.Now()
	if err := n.Boot(t.Context(), n.node); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, func() string {
		ready := n.kubectl(t, "get", "node", n.node, "-o", `jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}`)
		status, heartbeat, _ := strings.Cut(ready, " ")
		if at, err := time.Parse(time.RFC3339, heartbeat); err != nil || at.Before(booted) || status != "True" { // its first words can be that it is not
			return "the node's last words are " + ready
		}
		return ""
	})
	n.waitPodsOn(t, n.node)
}

// reboots boots the switched node again: it comes back on containerd alone.
func reboots(t *testing.T, n *dressed) {
	reboot(t, n)
	n.onContainerd(t, n.node, false)
}
