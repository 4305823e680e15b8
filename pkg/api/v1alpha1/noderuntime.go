package v1alpha1

// The kinds of the objects that status prints.
const (
	KindNodeRuntime     = "NodeRuntime"
	KindNodeRuntimeList = "NodeRuntimeList"
)

// NodeRuntimeList is what `status -o json` prints.
type NodeRuntimeList struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Items      []NodeRuntime `json:"items"`
	// Errors says what is missing from Items, a sentence each.
	Errors []string `json:"errors,omitempty"`
}

// NodeRuntime is one node. Fields that the node does not report are left out.
type NodeRuntime struct {
	APIVersion string              `json:"apiVersion"`
	Kind       string              `json:"kind"`
	Metadata   NodeRuntimeMetadata `json:"metadata"`
	// Status is as in `kubectl get nodes`: "Ready,SchedulingDisabled".
	Status        string `json:"status"`
	Ready         bool   `json:"ready"`
	Unschedulable bool   `json:"unschedulable"`
	// Runtime is docker, containerd or cri-o; RuntimeVersion as the runtime spells it.
	Runtime        string `json:"runtime,omitempty"`
	RuntimeVersion string `json:"runtimeVersion,omitempty"`
	// CRISocket is kubeadm's annotation, where there is one.
	CRISocket       string             `json:"criSocket,omitempty"`
	KubeletVersion  string             `json:"kubeletVersion,omitempty"`
	OperatingSystem string             `json:"operatingSystem,omitempty"`
	Architecture    string             `json:"architecture,omitempty"`
	OSImage         string             `json:"osImage,omitempty"`
	KernelVersion   string             `json:"kernelVersion,omitempty"`
	InternalIP      string             `json:"internalIP,omitempty"`
	Switch          *NodeRuntimeSwitch `json:"switch,omitempty"`
	Advice          *NodeRuntimeAdvice `json:"advice,omitempty"`
}

// NodeRuntimeMetadata has the node's name.
type NodeRuntimeMetadata struct {
	Name string `json:"name"`
}

// NodeRuntimeSwitch is how far a switch is or how the last one ended.
type NodeRuntimeSwitch struct {
	Phase   string `json:"phase"`
	From    string `json:"from,omitempty"`
	To      string `json:"to,omitempty"`
	Run     string `json:"run,omitempty"`
	Message string `json:"message,omitempty"`
}

// NodeRuntimeAdvice is what to do about the node; inventory.AdviceID lists the IDs.
type NodeRuntimeAdvice struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}
