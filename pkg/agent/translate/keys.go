package translate

import "slices"

// Verdict is what becomes of a setting of Docker's.
type Verdict string

// The verdicts.
const (
	Carried    Verdict = "carried"            // containerd gets it
	Kubelets   Verdict = "kubelet's"          // the kubelet has the setting that now counts
	Irrelevant Verdict = "irrelevant to pods" // it never reached a pod
	Warned     Verdict = "warning"            // it is lost, or a person has to look at it
)

// kind is the JSON type that dockerd takes.
type kind int

const (
	text kind = iota
	boolean
	number
	list
	texts  // object of strings
	object // anything else that is an object or a list of objects
	size   // a string such as "64m", never null
)

// Key is a key of daemon.json in any Docker from 18.09 to 29.
type Key struct {
	Name    string
	Verdict Verdict
	// Becomes says what it turns into, or why it does not matter or is lost.
	Becomes string

	kind kind
	// flag is dockerd's, where it is not the key's name; short its letter.
	flag, short string
	// depends is set where the verdict depends on the value; Verdict is then that of the values that matter.
	depends bool
}

const (
	onlyBridge = "Docker's own networks; pods have CNI's"
	onlySwarm  = "Swarm"
	onlyClient = "who may talk to dockerd. Pods that mount its socket have to change"
	onlyDaemon = "dockerd's own files and messages"
	onlyBuild  = "building and pushing images"
)

// flat are the keys whose objects hold no keys of their own (daemon/config, flatOptions of 20.10).
var flat = []string{"builder", "cluster-store-opts", "default-ulimits", "features", "log-opts", "runtimes"}

// since23 are the keys that no dockerd up to 20.10 takes.
var since23 = []string{
	"allow-direct-routing", "bip6", "cdi-spec-dirs", "containerd-plugin-namespace", "default-init", "default-network-opts", "host-gateway-ips", "http-proxy",
	"https-proxy", "ip-forward-no-drop", "log-format", "no-proxy", "proxies", "resolv-conf", "swarm-raft-election-tick", "swarm-raft-heartbeat-tick",
}

// Keys returns the table, in alphabetical order.
func Keys() []Key { return slices.Clone(keys) }

var keys = []Key{
	{Name: "allow-direct-routing", Verdict: Irrelevant, Becomes: onlyBridge, kind: boolean},
	{Name: "allow-nondistributable-artifacts", Verdict: Irrelevant, Becomes: onlyBuild, kind: list},
	{Name: "api-cors-header", Verdict: Irrelevant, Becomes: onlyClient, kind: text},
	{Name: "authorization-plugins", Verdict: Irrelevant, Becomes: onlyClient, kind: list, flag: "authorization-plugin"},
	{Name: "bip", Verdict: Irrelevant, Becomes: onlyBridge},
	{Name: "bip6", Verdict: Irrelevant, Becomes: onlyBridge},
	{Name: "bridge", Verdict: Irrelevant, Becomes: onlyBridge, short: "b"},
	{Name: "builder", Verdict: Irrelevant, Becomes: onlyBuild, kind: object},
	{Name: "cdi-spec-dirs", Verdict: Warned, Becomes: "containerd reads /etc/cdi and /var/run/cdi; other directories have to be added to its cdi_spec_dirs", kind: list, flag: "cdi-spec-dir"},
	{Name: "cgroup-parent", Verdict: Irrelevant, Becomes: "the kubelet names each pod's cgroup"},
	{Name: "cluster-advertise", Verdict: Irrelevant, Becomes: onlySwarm},
	{Name: "cluster-store", Verdict: Irrelevant, Becomes: onlySwarm},
	{Name: "cluster-store-opts", Verdict: Irrelevant, Becomes: onlySwarm, kind: texts, flag: "cluster-store-opt"},
	{Name: "containerd", Verdict: Irrelevant, Becomes: "which containerd dockerd uses; pods get that of containerd.service"},
	{Name: "containerd-namespace", Verdict: Irrelevant, Becomes: "Docker's own; CRI's is k8s.io"},
	{Name: "containerd-plugin-namespace", Verdict: Irrelevant, Becomes: "Docker's own; CRI's is k8s.io", flag: "containerd-plugins-namespace"},
	{Name: "cpu-rt-period", Verdict: Warned, Becomes: "CRI has no real-time CPU limits", kind: number},
	{Name: "cpu-rt-runtime", Verdict: Warned, Becomes: "CRI has no real-time CPU limits", kind: number},
	{Name: "cri-containerd", Verdict: Irrelevant, Becomes: "concerns a containerd that dockerd starts itself", kind: boolean},
	{Name: "data-root", Verdict: Warned, Becomes: "containerd keeps its own directory: to move it under Docker's running containers would end them. Space is checked before anything is changed", depends: true},
	{Name: "debug", Verdict: Carried, Becomes: "[debug] level = \"debug\"", kind: boolean, short: "D", depends: true},
	{Name: "default-address-pools", Verdict: Irrelevant, Becomes: onlyBridge, kind: object, flag: "default-address-pool"},
	{Name: "default-cgroupns-mode", Verdict: Irrelevant, Becomes: "containerd chooses as Docker does by default: a namespace of its own on cgroup v2"},
	{Name: "default-gateway", Verdict: Irrelevant, Becomes: onlyBridge},
	{Name: "default-gateway-v6", Verdict: Irrelevant, Becomes: onlyBridge},
	{Name: "default-init", Verdict: Warned, Becomes: "CRI adds no init process to containers"},
	{Name: "default-ipc-mode", Verdict: Irrelevant, Becomes: "the kubelet sets it for each pod"},
	{Name: "default-network-opts", Verdict: Irrelevant, Becomes: onlyBridge, kind: object, flag: "default-network-opt"},
	{Name: "default-runtime", Verdict: Carried, Becomes: "default_runtime_name; the name of a shim that is not among runtimes, as Docker takes it from 23.0 on, becomes a handler of that name"},
	{Name: "default-shm-size", Verdict: Irrelevant, Becomes: "pods have 64 MiB on both", kind: size},
	{Name: "default-ulimits", Verdict: Carried, Becomes: "rlimits in a base_runtime_spec of each handler that runs runc or a program like it", kind: object, flag: "default-ulimit"},
	{Name: "deprecated-key-path", Verdict: Irrelevant, Becomes: onlyDaemon},
	{Name: "dns", Verdict: Irrelevant, Becomes: onlyBridge, kind: list},
	{Name: "dns-opts", Verdict: Irrelevant, Becomes: onlyBridge, kind: list, flag: "dns-opt"},
	{Name: "dns-search", Verdict: Irrelevant, Becomes: onlyBridge, kind: list},
	{Name: "exec-opts", Verdict: Kubelets, Becomes: "containerd gets the kubelet's cgroup driver on every handler; a difference between the two is reported", kind: list, flag: "exec-opt"},
	{Name: "exec-root", Verdict: Irrelevant, Becomes: onlyDaemon},
	{Name: "experimental", Verdict: Irrelevant, Becomes: onlyDaemon, kind: boolean},
	{Name: "features", Verdict: Irrelevant, Becomes: "where Docker keeps images is found by asking it", kind: object, flag: "feature"},
	{Name: "fixed-cidr", Verdict: Irrelevant, Becomes: onlyBridge},
	{Name: "fixed-cidr-v6", Verdict: Irrelevant, Becomes: onlyBridge},
	{Name: "graph", Verdict: Warned, Becomes: "as data-root", short: "g", depends: true},
	{Name: "group", Verdict: Irrelevant, Becomes: onlyClient, short: "G"},
	{Name: "host-gateway-ip", Verdict: Irrelevant, Becomes: onlyBridge},
	{Name: "host-gateway-ips", Verdict: Irrelevant, Becomes: onlyBridge, kind: list},
	{Name: "hosts", Verdict: Irrelevant, Becomes: onlyClient, kind: list, flag: "host", short: "H"},
	{Name: "icc", Verdict: Irrelevant, Becomes: onlyBridge, kind: boolean},
	{Name: "init", Verdict: Warned, Becomes: "Docker put an init process into every container; CRI cannot. Images whose first process does not reap its children collect zombies", kind: boolean, depends: true},
	{Name: "init-path", Verdict: Irrelevant, Becomes: "counts only with init"},
	{Name: "insecure-registries", Verdict: Carried, Becomes: "a hosts.toml for each; of a network (CIDR), for each registry in it that images on the node come from, and a warning, since containerd knows hosts alone", kind: list, flag: "insecure-registry"},
	{Name: "ip", Verdict: Irrelevant, Becomes: onlyBridge},
	{Name: "ip-forward", Verdict: Irrelevant, Becomes: "the kernel's setting as it is now is kept for the next boot", kind: boolean},
	{Name: "ip-forward-no-drop", Verdict: Irrelevant, Becomes: "the kernel's setting as it is now is kept for the next boot", kind: boolean},
	{Name: "ip-masq", Verdict: Irrelevant, Becomes: onlyBridge, kind: boolean},
	{Name: "ip6tables", Verdict: Irrelevant, Becomes: onlyBridge, kind: boolean},
	{Name: "iptables", Verdict: Irrelevant, Becomes: onlyBridge, kind: boolean},
	{Name: "ipv6", Verdict: Irrelevant, Becomes: onlyBridge, kind: boolean},
	{Name: "labels", Verdict: Irrelevant, Becomes: onlySwarm, kind: list, flag: "label"},
	{Name: "live-restore", Verdict: Irrelevant, Becomes: "containerd's containers always outlive a restart of the daemon", kind: boolean},
	{Name: "log-driver", Verdict: Warned, Becomes: "containerd writes files in CRI's format below /var/log/pods, whatever Docker did: with another driver than json-file logs no longer arrive there", depends: true},
	{Name: "log-format", Verdict: Irrelevant, Becomes: onlyDaemon},
	{Name: "log-level", Verdict: Carried, Becomes: "[debug] level, unless containerd's config says one", short: "l"},
	{Name: "log-opts", Verdict: Kubelets, Becomes: "max-size and max-file become containerLogMaxSize and containerLogMaxFiles (at least 2) of the kubelet, unless it has its own; the other options are a warning", kind: texts, flag: "log-opt", depends: true},
	{Name: "max-concurrent-downloads", Verdict: Carried, Becomes: "max_concurrent_downloads", kind: number},
	{Name: "max-concurrent-uploads", Verdict: Irrelevant, Becomes: onlyBuild, kind: number},
	{Name: "max-download-attempts", Verdict: Irrelevant, Becomes: "the kubelet repeats pulls", kind: number},
	{Name: "metrics-addr", Verdict: Warned, Becomes: "dockerd holds the address until the cutover, and containerd's metrics have other names under /v1/metrics: set [metrics] address afterwards, and change what scrapes it"},
	{Name: "mtu", Verdict: Irrelevant, Becomes: onlyBridge, kind: number},
	{Name: "network-control-plane-mtu", Verdict: Irrelevant, Becomes: onlySwarm, kind: number},
	{Name: "network-diagnostic-port", Verdict: Irrelevant, Becomes: onlySwarm, kind: number},
	{Name: "no-new-privileges", Verdict: Warned, Becomes: "Docker set it on every container; CRI takes it from allowPrivilegeEscalation of each container alone", kind: boolean, depends: true},
	{Name: "node-generic-resources", Verdict: Irrelevant, Becomes: onlySwarm, kind: list, flag: "node-generic-resource"},
	{Name: "oom-score-adjust", Verdict: Irrelevant, Becomes: onlyDaemon, kind: number},
	{Name: "pidfile", Verdict: Irrelevant, Becomes: onlyDaemon, short: "p"},
	{Name: "proxies", Verdict: Carried, Becomes: "HTTP_PROXY, HTTPS_PROXY and NO_PROXY in a drop-in of containerd.service", kind: texts},
	{Name: "raw-logs", Verdict: Irrelevant, Becomes: onlyDaemon, kind: boolean},
	{Name: "registry-mirrors", Verdict: Carried, Becomes: "certs.d/docker.io/hosts.toml", kind: list, flag: "registry-mirror"},
	{Name: "resolv-conf", Verdict: Irrelevant, Becomes: "the kubelet's resolvConf decides"},
	{Name: "rootless", Verdict: Irrelevant, Becomes: onlyDaemon, kind: boolean},
	{Name: "runtimes", Verdict: Carried, Becomes: "a handler each; one with arguments runs through a script", kind: object, flag: "add-runtime"},
	{Name: "seccomp-profile", Verdict: Warned, Becomes: "it reached pods that ask for RuntimeDefault; with containerd these get containerd's built-in profile", depends: true},
	{Name: "selinux-enabled", Verdict: Carried, Becomes: "enable_selinux", kind: boolean, depends: true},
	{Name: "shutdown-timeout", Verdict: Irrelevant, Becomes: "pods have their own grace periods", kind: number},
	{Name: "storage-driver", Verdict: Carried, Becomes: "vfs becomes the snapshotter native, btrfs and zfs those of these names, unless containerd's config names one; all others overlayfs", short: "s"},
	{Name: "storage-opts", Verdict: Warned, Becomes: "options of Docker's storage drivers; overlay2.size and the like have no equal", kind: list, flag: "storage-opt", depends: true},
	{Name: "swarm-default-advertise-addr", Verdict: Irrelevant, Becomes: onlySwarm},
	{Name: "swarm-raft-election-tick", Verdict: Irrelevant, Becomes: onlySwarm, kind: number},
	{Name: "swarm-raft-heartbeat-tick", Verdict: Irrelevant, Becomes: onlySwarm, kind: number},
	{Name: "tls", Verdict: Irrelevant, Becomes: onlyClient, kind: boolean},
	{Name: "tlscacert", Verdict: Irrelevant, Becomes: onlyClient},
	{Name: "tlscert", Verdict: Irrelevant, Becomes: onlyClient},
	{Name: "tlskey", Verdict: Irrelevant, Becomes: onlyClient},
	{Name: "tlsverify", Verdict: Irrelevant, Becomes: onlyClient, kind: boolean},
	{Name: "userland-proxy", Verdict: Irrelevant, Becomes: onlyBridge, kind: boolean},
	{Name: "userland-proxy-path", Verdict: Irrelevant, Becomes: onlyBridge},
	{Name: "userns-remap", Verdict: Warned, Becomes: "root in containers was another user on the host; with containerd a pod has to ask for that by hostUsers: false"},
}

func keyNamed(name string) (Key, bool) {
	i := slices.IndexFunc(keys, func(k Key) bool { return k.Name == name })
	if i < 0 {
		return Key{}, false
	}
	return keys[i], true
}
