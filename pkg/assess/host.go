package assess

import (
	"slices"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// hostCheck is one whose findings the agent makes on the host.
func hostCheck(id string, severity Severity, title, why, remedy string) Check {
	return Check{ID: id, Category: Node, Severity: severity, Title: title, Why: why, Remedy: remedy, OnHost: true, fixed: severity == Blocker}
}

var hostChecks = []Check{
	hostCheck(protocol.CheckSystemd, Blocker, "The host does not run systemd",
		"a unit of systemd's does the cutover, and the kubelet and both runtimes have to be units", "replace the node"),
	hostCheck(protocol.CheckKubelet, Blocker, "The kubelet's setup cannot be switched",
		"what the running kubelet uses has to be known before it is changed", "do what the finding says"),
	hostCheck(protocol.CheckSecondKubelet, Blocker, "A second kubelet runs on the host",
		"it would continue to use Docker, or start the same pods twice", "stop it"),
	hostCheck(protocol.CheckKubeletFiles, Blocker, "Cannot determine which kubelet file sets the runtime",
		"a kubelet that starts with the wrong flags does not come back", "make the file that is named say what the running kubelet uses, and restart the kubelet"),
	hostCheck(protocol.CheckDocker, Blocker, "Docker does not report what the switch needs",
		"its containers, images and the pods' sandbox image have to be known", "do what the finding says"),
	hostCheck(protocol.CheckDockerUnit, Blocker, "The Docker behind the kubelet is not the one of docker.service",
		"that unit is what is stopped, held and started again", "have systemd run Docker as docker.service"),
	hostCheck(protocol.CheckDockerConfig, Blocker, "Docker would not start with its configuration again",
		"there would be no way back", "correct it, and restart Docker"),
	hostCheck(protocol.CheckRuntimes, Blocker, "containerd does not find the program of Docker's default runtime",
		"no pod would start, or pods would lose the isolation that gVisor or Kata gives them", "put the program into a directory of containerd's PATH"),
	{
		ID: protocol.CheckForeign, Category: Node, Severity: Blocker, OnHost: true, flag: "--keep-docker",
		Title: "Docker runs containers that Kubernetes does not manage", Why: "they would stop with Docker",
		Remedy: "stop them, or give `--keep-docker` to the switch",
	},
	{
		ID: protocol.CheckSwarm, Category: Node, Severity: Blocker, OnHost: true, flag: "--keep-docker",
		Title: "Docker is a manager of a Docker Swarm", Why: "the Swarm would lose it, and with a majority of its managers all control",
		Remedy: "take the node out of the Swarm, or give `--keep-docker` to the switch",
	},
	hostCheck(protocol.CheckContainerd, Blocker, "There is no containerd that the kubelet can use",
		"the switch needs one that runs as a service and speaks the kubelet's version of CRI", "do what the finding says"),
	hostCheck(protocol.CheckCarried, Blocker, "Docker's settings cannot be added to containerd's configuration",
		"a setting must not be dropped in silence, nor an administrator's configuration broken", "correct the file that is named"),
	hostCheck(protocol.CheckNetwork, Blocker, "The host's CNI configuration cannot be used",
		"containerd gives pods their network through CNI", "do what the finding says"),
	hostCheck(protocol.CheckUnits, Blocker, "A dependency between units would take one down with another",
		"the kubelet must not stop with Docker, nor Docker with containerd", "replace it by Wants="),
	hostCheck(protocol.CheckKillMode, Blocker, "A restart of containerd would kill running containers",
		"containerd is restarted while the node is in service, and KillMode=control-group, systemd's default, or mixed has systemd kill the shims in the unit's control group. "+
			"Docker and the kubelet would still show their containers as running",
		"set KillMode=process for containerd.service in a drop-in, and run systemctl daemon-reload"),
	hostCheck(protocol.CheckHold, Blocker, "A unit could not be held down during the cutover",
		"a drop-in that sorts behind kubectl-runtime's resets the conditions of the unit, so that systemd could start the kubelet or Docker between two runtimes; "+
			"or the unit's folder of drop-ins is a symbolic link that leads nowhere, cannot be written to, or is another unit's as well",
		"remove the line from the drop-in that is named, or have its name sort before zz-kubectl-runtime.conf; make the folder a directory of its own"),
	hostCheck(protocol.CheckFileSystem, Blocker, "containerd's file system cannot hold its snapshots",
		"overlayfs needs a file system that reports the types of directory entries (d_type)", "give containerd a root on another file system"),
	hostCheck(protocol.CheckSpace, Blocker, "There is not enough space for the images",
		"a full disk in the middle of a switch harms the pods that run, and below the kubelet's eviction thresholds it evicts them", "free some, for example with docker image prune"),
	hostCheck(protocol.CheckSettingLost, Warning, "A setting of Docker's is lost, or a person has to look at it",
		"pods that rely on it behave differently on containerd", "see docs/configuration.md, and set what takes its place"),
	hostCheck(protocol.CheckDockerUse, Warning, "Docker is used for more than Kubernetes",
		"containers that do not run at the moment are not started any more, not even by Docker's restart policies, and a Swarm loses a worker",
		"see who needs them, or give `--keep-docker` to the switch"),
	hostCheck(protocol.CheckDependents, Warning, "Units depend on Docker's",
		"systemd stops what requires a unit, or is part of it, together with it, and does not start it again",
		"replace the dependency by Wants=, or see that the unit can be away"),
	hostCheck(protocol.CheckMayInstall, Warning, "Whether a containerd can be installed is not known",
		"a plan writes nothing on the node, and so fetches no package lists; a switch does, before anything else is changed, and refuses where they have none either",
		"fetch the package lists on the node and plan again, or install containerd"),
	hostCheck(protocol.CheckCgroupDriver, Warning, "Docker and the kubelet use different cgroup drivers",
		"containerd is set up with the kubelet's", "see that this is what you want"),
	hostCheck(protocol.CheckContainerdFile, Warning, "What Docker knows of a registry is not added to containerd's configuration",
		"what an administrator wrote for containerd is kept, and pulls may go another way than with Docker", "look at the file that is named, and add what is missing"),
	hostCheck(protocol.CheckLogRotation, Warning, "Docker's rotation of logs is lost",
		"containers' logs grow to what the kubelet's defaults allow", "give the kubelet a configuration file"),
	hostCheck(protocol.CheckAPI, Warning, "The host cannot ask the API server for its own node",
		"it then judges by the kubelet's health alone whether the cutover worked", "see that the kubelet's kubeconfig can be used on the host"),
	hostCheck(protocol.CheckNote, Warning, "Something on the host is worth a look",
		"the switch continues all the same", "do what the finding says"),
	hostCheck(protocol.CheckSetting, Info, "What becomes of a setting of Docker's",
		"none is dropped in silence", "nothing; docs/configuration.md has all settings"),
	hostCheck(protocol.CheckLimits, Info, "Limits of processes in pods",
		"containers inherit limits such as that of open files from the containerd that starts them; programs fail with a lower one, and some choke on a higher one", "nothing"),
	hostCheck(protocol.CheckDisk, Info, "What the images need on the host's disk",
		"they are brought before the node is drained", "nothing"),
	hostCheck(protocol.CheckRegistry, Info, "A registry that the node's images came from",
		"a wrong mirror, certificate or proxy would show at the first pull; the rehearsal asks each registry as containerd would, and refuses where one answers Docker alone", "nothing"),
	hostCheck(protocol.CheckInstall, Info, "A containerd would be installed",
		"the node has none that its kubelet can use; what the package manager would do comes from its own simulation with the lists that are there",
		"nothing"),
	hostCheck(protocol.CheckVersions, Info, "The versions on the host",
		"they decide on how the switch is done", "nothing"),
}

// FromHost are the findings that an agent made on a node's host, in the order of Checks. Ignored ones are left out.
func FromHost(node string, found []protocol.Finding, ignore []string) []Finding {
	unique := map[Finding]int{}
	checks := Checks()
	for _, f := range found {
		if slices.Contains(ignore, f.Check) {
			continue
		}
		order := slices.IndexFunc(checks, func(c Check) bool { return c.ID == f.Check })
		check := Check{ID: f.Check, Category: Node, Severity: Warning} // of an agent of another build
		if order >= 0 {
			check = checks[order]
		}
		unique[Finding{Check: check.ID, Category: check.Category, Severity: check.Severity, Node: node, Detail: f.Message, Hint: f.Hint}] = order
	}
	return sorted(unique)
}

// Merge puts findings of several sources into one order.
func Merge(lists ...[]Finding) []Finding {
	checks := Checks()
	unique := map[Finding]int{}
	for _, list := range lists {
		for _, f := range list {
			unique[f] = slices.IndexFunc(checks, func(c Check) bool { return c.ID == f.Check })
		}
	}
	return sorted(unique)
}
