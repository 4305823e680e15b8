package steps

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// Kubelets up to 1.23 ask Docker where its data lies, on whichever runtime they run. Where it does not answer they ask five times, a second
// apart, do nothing else meanwhile, and then take dockerDataRoot (google/cadvisor v0.43.1 container/docker/factory.go, RootDir;
// no flag changes it, and the kubelet of 1.24 is built without it). The node is out of service, so that the agent says at once what
// they would come to believe after five seconds.
const (
	lastToAskDocker = 23
	dockerDataRoot  = "/var/lib/docker"
)

// dockerAnswers is as little of Docker's API as that question needs. It names no storage driver: with one, the kubelet would go on to
// look for Docker's containers (the same file, Register).
func dockerAnswers(w http.ResponseWriter, r *http.Request) {
	call := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:] // without the API's version
	answers := map[string]map[string]string{
		"_ping":   {},
		"version": {"Version": "", "ApiVersion": "1.40"},
		"info":    {"DockerRootDir": dockerDataRoot},
	}
	answer, ok := answers[call]
	w.Header().Set("API-Version", "1.40")
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
		answer = map[string]string{"message": "Docker is stopped on this node"}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// answerForDocker answers a kubelet that starts in the place of the Docker that is stopped, until end is called. Where that cannot be done,
// as beside a Docker that runs on, the kubelet only takes longer.
func answerForDocker(version version.Version, socket string, report engine.Report) (end func()) {
	path, isPath := strings.CutPrefix(socket, "unix://")
	if version.Minor > lastToAskDocker || !isPath {
		return func() {}
	}
	end, err := host.StandIn(path, http.HandlerFunc(dockerAnswers))
	if err != nil {
		report.Info("the kubelet may wait five seconds for Docker: " + err.Error())
		return func() {}
	}
	return end
}

// cadvisorSocket is where the kubelet asks, whatever its own endpoint is (the flag docker of cAdvisor's).
const cadvisorSocket = docker.DefaultSocket
