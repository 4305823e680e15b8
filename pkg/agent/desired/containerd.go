package desired

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// ContainerdConfig is containerd's config as it was and as it will be.
type ContainerdConfig struct {
	old, text []byte
	settings  containerd.Settings
	limits    []translate.Limit
	// Layout is that with the new one.
	Layout containerd.Layout
}

// ContainerdFiles are containerd's config, which comes last, and what lies beside it.
func ContainerdFiles(ctx context.Context, h *node.Host) ([]File, error) {
	found, err := facts.Of(h)
	if err != nil {
		return nil, err
	}
	config, err := Containerd(ctx, h, found)
	if err != nil {
		return nil, err
	}
	carried, _, err := CarriedFiles(ctx, h, found, config)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, file := range carried {
		planned, err := NewFile(file.Path, file.Data, file.Mode)
		if err != nil {
			return nil, err
		}
		files = append(files, planned)
	}
	return append(files, File{Path: found.ContainerdConfig, Old: config.old, New: config.text, Mode: configMode(found)}), nil
}

// Containerd makes containerd's new config. What the very containerd that will run makes of it, with what it imports, has to be what was
// wanted of it.
func Containerd(ctx context.Context, h *node.Host, found facts.Found) (ContainerdConfig, error) {
	old, err := host.ReadFile(found.ContainerdConfig)
	if err != nil {
		return ContainerdConfig{}, err
	}
	imported, err := containerd.ReadImports(found.ContainerdConfig, old)
	if err != nil {
		return ContainerdConfig{}, err
	}
	c := ContainerdConfig{old: old}
	if c.settings, err = containerdSettings(found, old, imported); err != nil {
		return c, err
	}
	carried, err := LimitsToCarry(ctx, h, found)
	if err != nil {
		return c, err
	}
	if c.limits = carried.Limits; len(c.limits) > 0 {
		c.settings.BaseSpec = BaseSpecFile
	}
	c.text, err = containerd.Render(old, c.settings)
	if errors.As(err, new(*containerd.ImportError)) {
		return c, err
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", found.ContainerdConfig, err)
	}
	effective, err := EffectiveContainerd(ctx, h, found, c.text)
	if err != nil {
		return c, err
	}
	c.Layout = effective.Layout
	return c, effective.Check(c.settings)
}

// EffectiveContainerd is what the containerd that will run makes of a config; where it is yet to be installed, a guess.
func EffectiveContainerd(ctx context.Context, h *node.Host, found facts.Found, config []byte) (effective containerd.Effective, err error) {
	if WillRun(ctx, h, found) {
		err = host.Within(ctx, 30*time.Second, func(ctx context.Context) error {
			effective, err = containerd.ReadEffective(ctx, found.ContainerdBinary, found.ContainerdConfig, config, h.Runner.Run)
			return err
		})
	} else {
		err = containerd.ErrUnknownVersion
	}
	if errors.Is(err, containerd.ErrUnknownVersion) {
		effective, err = containerd.GuessEffective(found.ContainerdConfig, config)
	}
	effective.Root = cmp.Or(found.ContainerdRoot, effective.Root)
	return effective, err
}

// WillRun tells that the program on the host is the one that the node will run.
func WillRun(ctx context.Context, h *node.Host, found facts.Found) bool {
	if found.ContainerdBinary == "" || found.Install == nil {
		return found.ContainerdBinary != ""
	}
	is, err := containerd.Version(ctx, found.ContainerdBinary, h.Runner.Run)
	release, releaseErr := ContainerdRelease(found)
	return err == nil && releaseErr == nil && is.Major == release.Major && is.Minor == release.Minor
}

// ContainerdRelease is the version of the containerd that the node will run.
func ContainerdRelease(found facts.Found) (version.Version, error) {
	v, ok := version.Parse(found.Facts.ContainerdVersion)
	if !ok {
		return version.Version{}, fmt.Errorf("containerd version %q: want major.minor.patch", found.Facts.ContainerdVersion)
	}
	return v, nil
}

func containerdSettings(found facts.Found, old []byte, imported []containerd.Imported) (containerd.Settings, error) {
	settings := containerd.Settings{
		CgroupDriver:        found.Facts.CgroupDriver,
		SandboxImage:        found.Facts.SandboxImage,
		CNIBinDirs:          found.CNIBinDir,
		CNIConfDir:          found.CNIConfDir,
		RestrictOOMScoreAdj: found.RestrictOOM,
		Address:             found.ContainerdAddress,
		Imported:            imported,
	}
	var err error
	if settings.Release, err = ContainerdRelease(found); err != nil {
		return settings, err
	}
	if err := carrySettings(&settings, found, old); err != nil {
		return settings, fmt.Errorf("%s: %w", found.ContainerdConfig, err)
	}
	if found.SandboxAuthFile != "" {
		auth, err := RegistryAuth(found.SandboxAuthFile, found.Facts.SandboxImage)
		if err != nil {
			return settings, fmt.Errorf("read credentials for the sandbox image: %w", err)
		}
		settings.SandboxAuth = auth
	}
	return settings, nil
}

// configMode is for root's eyes alone where the config holds a password.
func configMode(found facts.Found) uint32 {
	if found.SandboxAuthFile != "" {
		return 0o600
	}
	return 0o644
}
