package inspect

import (
	"errors"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestLookForForeign: what does not run at this moment ends with Docker, too.
func TestLookForForeign(t *testing.T) {
	pod, stopped := docker.Container{Name: "k8s_web", Labels: map[string]string{"io.kubernetes.docker.type": "container"}}, docker.Container{Name: "backup"}
	db := docker.Container{Name: "db", Running: true}
	many := []docker.Container{pod}
	for n := range 12 {
		many = append(many, docker.Container{Name: string(rune('a' + n))})
	}
	for _, test := range []struct {
		name            string
		containers      []docker.Container
		info            docker.Info
		keep            bool
		refused, warned string
	}{
		{name: "pods only", containers: []docker.Container{pod}},
		{name: "one that runs", containers: []docker.Container{pod, db, stopped}, refused: "1 container(s) that Kubernetes does not manage: db"},
		{name: "one that does not", containers: []docker.Container{pod, stopped}, warned: "1 container(s) that Kubernetes does not manage and that do not run now"},
		{name: "many that do not", containers: many, warned: "12 container(s)"},
		{name: "a manager", info: docker.Info{Swarm: true, SwarmManager: true}, refused: "a manager of a Docker Swarm"},
		{name: "a worker", info: docker.Info{Swarm: true}, warned: "a member of a Docker Swarm"},
		{name: "Docker is kept", containers: []docker.Container{db, stopped}, info: docker.Info{Swarm: true, SwarmManager: true}, keep: true},
	} {
		i := &inspection{h: &node.Host{Spec: protocol.Spec{KeepDocker: test.keep}}, containers: test.containers, info: test.info}
		err := errors.Join(checkForeign(t.Context(), i), checkSwarm(t.Context(), i))
		if (err == nil) != (test.refused == "") || err != nil && !strings.Contains(err.Error(), test.refused) {
			t.Errorf("%s: refused with %v", test.name, err)
		}
		warnings := strings.Join(i.Facts.Warnings, "\n")
		if (warnings == "") != (test.warned == "") || !strings.Contains(warnings, test.warned) || strings.Contains(warnings, "k8s_web") || len(warnings) > 300 {
			t.Errorf("%s: warnings %q", test.name, warnings)
		}
	}
}
