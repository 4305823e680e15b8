package inspect

import (
	"context"
	"slices"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var registriesCheck = check{id: protocol.CheckRegistry, warning: protocol.CheckRegistry, needs: []string{protocol.CheckDocker, protocol.CheckDockerConfig}, run: checkRegistries}

// checkRegistries lists the registries that the rehearsal will try. A plan asks none of them.
func checkRegistries(_ context.Context, i *inspection) error {
	for _, r := range desired.RegistriesInUse(i.containers, desired.UsedNames(i.h, i.Facts.SandboxImage), i.images) {
		through := ""
		switch {
		case r.Host == "docker.io" && len(i.Docker.Mirrors) > 0:
			through = " through " + strings.Join(i.Docker.Mirrors, ", ")
		case slices.Contains(i.Docker.Insecure, r.Host):
			through = " without verification of its certificate, or over plain HTTP"
		}
		i.note(protocol.CheckRegistry, "%s, which %d image(s) of this node's pods came from%s: a switch asks it for %s through containerd's configuration before the node is drained",
			r.Host, r.Images, through, r.Ref)
	}
	return nil
}
