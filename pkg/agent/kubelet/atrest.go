package kubelet

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// AtRest reads how the kubelet would be set up if it were started now, from its unit's files alone.
func AtRest(ctx context.Context, systemd host.Systemd) (Setup, error) {
	p, err := systemd.Show(ctx, Unit, "FragmentPath", "DropInPaths")
	if err != nil {
		return Setup{}, err
	}
	files := append([]string{p["FragmentPath"]}, strings.Fields(p["DropInPaths"])...)
	s, err := loadService(os.ReadFile, files)
	if err != nil {
		return Setup{}, err
	}
	args := s.args()
	if len(args) == 0 {
		return Setup{}, fmt.Errorf("read unit %s: no program", Unit)
	}
	out, err := systemd.Run.Run(ctx, args[0], "--version")
	if err != nil {
		return Setup{}, fmt.Errorf("find kubelet's version: %w", err)
	}
	version, err := ParseVersion(out)
	if err != nil {
		return Setup{}, err
	}
	return Setup{Version: version, Args: args, UnitFiles: files, Read: os.ReadFile, ListConfigDir: ListConfigDir}, nil
}
