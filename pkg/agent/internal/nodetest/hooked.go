package nodetest

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
)

// Hooked is a systemd that notes what is done to containerd.
type Hooked struct {
	*Units
	Verbs []string
	On    func(verb string) error
}

// Run is systemctl.
func (s *Hooked) Run(ctx context.Context, name string, args ...string) (string, error) {
	if verb := args[0]; args[len(args)-1] == node.ContainerdUnit && (verb == "kill" || verb == "restart") {
		s.Verbs = append(s.Verbs, verb)
		return "", s.On(verb)
	}
	return s.Units.Run(ctx, name, args...)
}
