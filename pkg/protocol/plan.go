package protocol

// Finding is what the agent found on a host that bears on a switch of it, for the plan.
type Finding struct {
	// Check is one of HostChecks; what it means, how severe it is and what to do about it is in pkg/assess.
	Check string `json:"check"`
	// Message is a sentence without a full stop.
	Message string `json:"message"`
	// Hint is what a person can do here, where that is more than the check's remedy.
	Hint string `json:"hint,omitempty"`
}

// The checks of a host. IDs are stable: scripts and --ignore-checks name them.
const (
	CheckSystemd        = "host-systemd"
	CheckKubelet        = "host-kubelet"
	CheckSecondKubelet  = "host-second-kubelet"
	CheckKubeletFiles   = "host-kubelet-files"
	CheckLogRotation    = "host-log-rotation"
	CheckDocker         = "host-docker"
	CheckDockerUnit     = "host-docker-unit"
	CheckDockerConfig   = "host-docker-config"
	CheckRuntimes       = "host-docker-runtimes"
	CheckForeign        = "host-foreign-containers"
	CheckSwarm          = "host-swarm"
	CheckDockerUse      = "host-docker-use"
	CheckSettingLost    = "host-docker-setting-lost"
	CheckSetting        = "host-docker-setting"
	CheckLimits         = "host-limits"
	CheckCgroupDriver   = "host-cgroup-driver"
	CheckContainerd     = "host-containerd"
	CheckMayInstall     = "host-containerd-unknown"
	CheckInstall        = "host-containerd-install"
	CheckContainerdFile = "host-containerd-config"
	CheckCarried        = "host-carried"
	CheckNetwork        = "host-cni"
	CheckUnits          = "host-units"
	CheckKillMode       = "host-containerd-kill-mode"
	CheckHold           = "host-hold"
	CheckDependents     = "host-dependent-units"
	CheckFileSystem     = "host-file-system"
	CheckSpace          = "host-space"
	CheckDisk           = "host-disk"
	CheckRegistry       = "host-registry"
	CheckAPI            = "host-api"
	CheckVersions       = "host-versions"
	CheckNote           = "host-note"
)

// HostChecks are all of them.
func HostChecks() []string {
	return []string{
		CheckSystemd, CheckKubelet, CheckSecondKubelet, CheckKubeletFiles, CheckLogRotation, CheckDocker, CheckDockerUnit, CheckDockerConfig, CheckRuntimes,
		CheckForeign, CheckSwarm, CheckDockerUse, CheckSettingLost, CheckSetting, CheckLimits, CheckCgroupDriver, CheckContainerd, CheckMayInstall, CheckInstall,
		CheckContainerdFile, CheckCarried, CheckNetwork, CheckUnits, CheckKillMode, CheckHold, CheckDependents, CheckFileSystem, CheckSpace, CheckDisk, CheckRegistry, CheckAPI, CheckVersions, CheckNote,
	}
}

// PlanStep is a step that a switch of the host would take.
type PlanStep struct {
	Phase Phase  `json:"phase"`
	ID    string `json:"id"`
	Title string `json:"title"`
}

// FileChange is what a step would do to a file or a link of the host.
type FileChange struct {
	Step string `json:"step"`
	// Path is the file itself, symbolic links resolved.
	Path   string       `json:"path"`
	Action ChangeAction `json:"action"`
	// Mode are the permission bits of a file that is made, in octal.
	Mode string `json:"mode,omitempty"`
	// Link is where a link points; it is empty for a file.
	Link string `json:"link,omitempty"`
	// Diff is a unified diff with secrets taken out. It is empty for a link, and where only what was taken out differs.
	Diff string `json:"diff,omitempty"`
	// Continues: Diff continues in the next event.
	Continues bool `json:"continues,omitempty"`
}

// ChangeAction is what becomes of a file.
type ChangeAction string

// The actions.
const (
	ActionCreate ChangeAction = "create"
	ActionUpdate ChangeAction = "update"
	ActionRemove ChangeAction = "remove"
)
