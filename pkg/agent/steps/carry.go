package steps

import (
	"context"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
)

// lookAtCarried tries what containerd-config will do, so that what cannot be done refuses the switch and warnings come first.
func (i *inspection) lookAtCarried(ctx context.Context) error {
	if err := i.lookForSandboxAuth(ctx); err != nil {
		return err
	}
	config, err := desired.Containerd(ctx, i.h, i.Found)
	if err != nil {
		return err
	}
	i.layout = config.Layout
	_, warnings, err := desired.CarriedFiles(ctx, i.h, i.Found, config)
	for _, warning := range warnings {
		i.warn("%s", warning)
	}
	return err
}
