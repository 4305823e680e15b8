package inspect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

var dockerConfigCheck = check{id: protocol.CheckDockerConfig, warning: protocol.CheckSettingLost, needs: []string{protocol.CheckKubelet}, run: checkDockerConfig}

// checkDockerConfig reads how Docker was set up, from daemon.json and from the process that runs.
func checkDockerConfig(ctx context.Context, i *inspection) error {
	if i.daemon == nil {
		return node.Refuse("start Docker as "+node.DockerUnit, "how Docker was started cannot be seen: %v", i.findDaemonErr)
	}
	dir := filepath.Join(node.Proc, strconv.Itoa(i.daemon.PID))
	environ, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return fmt.Errorf("read dockerd's environment: %w", err)
	}
	started, err := host.Started(node.Proc, i.daemon.PID)
	if err != nil {
		return err
	}
	dockerd := i.daemon.Exe
	if host.Absent(dockerd) {
		dockerd = filepath.Join(dir, "exe")
	}
	in := translate.Input{Version: i.Facts.DockerVersion, Args: i.daemon.Args, Environ: strings.Split(string(environ), "\x00")}
	in.File = translate.ConfigFile(in.Args)
	if in.Data, err = host.ReadFile(in.File); err != nil {
		return err
	}
	if in.Edited, err = changedSince(in.File, started); err != nil {
		return err
	}
	if in.Edited {
		i.warn("%s was changed since dockerd started: what it says now counts, also where dockerd has not read it", in.File)
	}
	settings, findings, err := translateConfig(ctx, i, dockerd, in)
	if err != nil {
		return err
	}
	settings.Insecure = append(settings.Insecure, insecureRegistries(ctx, i, settings.InsecureNetworks)...)
	i.Docker = settings
	for _, finding := range findings {
		if finding.Verdict == translate.Warned {
			i.warn("Docker's %s: %s", finding.Key, finding.Text)
		} else {
			i.note(protocol.CheckSetting, "%s: %s: %s", finding.Key, finding.Verdict, finding.Text)
		}
	}
	return nil
}

// translateConfig refuses what dockerd does not take, and what cannot be translated. dockerd is a program to ask, empty if there is none.
func translateConfig(ctx context.Context, i *inspection, dockerd string, in translate.Input) (translate.Settings, []translate.Finding, error) {
	if err := askDockerd(ctx, i, dockerd, &in); err != nil {
		return translate.Settings{}, nil, err
	}
	settings, findings, err := translate.Docker(in)
	if err != nil {
		err = refuseConfig(in, in.Accepted || !in.Edited && len(in.Args) > 0, err)
	}
	return settings, findings, err
}

// askDockerd has dockerd itself judge its configuration, where it can (from 23.0 on). What a refusal says of the place is ours.
func askDockerd(ctx context.Context, i *inspection, dockerd string, in *translate.Input) error {
	if dockerd == "" || !version.AtLeast(in.Version, 23, 0) {
		return nil
	}
	err := docker.Validate(ctx, dockerd, in.Args, in.Environ)
	var refused *docker.RefusedError
	switch {
	case err == nil:
		in.Accepted = true
	case errors.As(err, &refused):
		if _, _, ours := translate.Docker(*in); ours != nil {
			return refuseConfig(*in, false, fmt.Errorf("%w (dockerd %s: %v)", ours, in.Version, refused))
		}
		return refuseConfig(*in, false, fmt.Errorf("%s: %w", translate.Place(*in, refused.Reason), refused))
	case ctx.Err() != nil:
		return err
	default:
		i.warn("dockerd could not be asked whether it takes its configuration, which is judged without it: %v", err)
	}
	return nil
}

// refuseConfig refuses a configuration of Docker's that cannot be translated, or, unless it is taken, that dockerd does not start with.
func refuseConfig(in translate.Input, taken bool, err error) error {
	const hint = "correct it, and restart Docker"
	switch {
	case taken:
		return node.Refuse(hint, "Docker's configuration cannot be carried over: %v", err)
	case in.Edited:
		return node.Refuse(hint, "%s was changed since dockerd started, and dockerd would not start with it, so that there would be no way back: %v", in.File, err)
	default:
		return node.Refuse(hint, "dockerd would not start with its configuration again, and there would be no way back: %v", err)
	}
}

// changedSince looks at the inode's time, which a copy or a rename sets and nobody can set back; a file that does not exist has
// not changed.
func changedSince(path string, when time.Time) (bool, error) {
	var stat unix.Stat_t
	err := unix.Stat(path, &stat)
	if errors.Is(err, fs.ErrNotExist) || when.IsZero() {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return time.Unix(stat.Ctim.Unix()).After(when), nil
}

// insecureRegistries names the registries that images of the node come from and that are in one of the networks, by address or, as with
// Docker, by one of their name's.
func insecureRegistries(ctx context.Context, i *inspection, networks []string) []string {
	if len(networks) == 0 {
		return nil
	}
	var names []string
	for _, image := range i.images {
		names = append(append(names, image.RepoTags...), image.RepoDigests...)
	}
	return hostsWithin(networks, desired.RegistriesOf(names), func(host string) []netip.Addr {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		addresses, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host) // without an answer Docker takes it for secure
		return addresses
	})
}

func hostsWithin(networks, hosts []string, resolve func(host string) []netip.Addr) []string {
	return slices.DeleteFunc(hosts, func(host string) bool {
		name := host
		if h, _, err := net.SplitHostPort(host); err == nil {
			name = h
		}
		name = strings.Trim(name, "[]")
		var addresses []netip.Addr
		if address, err := netip.ParseAddr(name); err == nil {
			addresses = []netip.Addr{address}
		} else {
			addresses = resolve(name)
		}
		return !slices.ContainsFunc(networks, func(network string) bool {
			prefix, err := netip.ParsePrefix(network)
			return err == nil && slices.ContainsFunc(addresses, func(a netip.Addr) bool { return prefix.Contains(a.Unmap()) })
		})
	})
}
