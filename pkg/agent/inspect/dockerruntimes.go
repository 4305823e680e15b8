package inspect

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

var runtimesCheck = check{id: protocol.CheckRuntimes, warning: protocol.CheckSettingLost, needs: []string{protocol.CheckDockerConfig, protocol.CheckContainerd}, run: checkRuntimes}

// usualPath is what systemd gives a unit that names no PATH.
const usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// checkRuntimes makes sure that containerd finds the programs of Docker's runtimes: without that of the default one no pod would start, and
// without another's none that asks for it.
func checkRuntimes(ctx context.Context, i *inspection) error {
	path, err := containerdPath(ctx, i)
	if err != nil {
		return err
	}
	for _, r := range i.Docker.Runtimes {
		program, dirs := r.Path, path
		if r.Type != "" {
			dirs += ":" + filepath.Dir(i.ContainerdBinary)
			if program = shimOf(r.Type); program == "" {
				return node.Refuse("correct it, and restart Docker", "%s: %q names no shim, as io.containerd.runsc.v1 does", r.Where, r.Type)
			}
		}
		if finds(dirs, program) {
			continue
		}
		if r.Name == i.Docker.DefaultRuntime {
			return node.Refuse("put "+filepath.Base(program)+" into one of these directories", "%s: Docker's default runtime %s needs the program %s, which containerd does not find (%s): no pod would start",
				r.Where, r.Name, program, dirs)
		}
		i.warn("%s: Docker's runtime %s needs the program %s, which containerd does not find (%s): no pod that asks for it would start", r.Where, r.Name, program, dirs)
	}
	return nil
}

// containerdPath is where containerd looks for programs: its PATH, and for shims beside itself (containerd runtime/v2, resolveRuntimePath).
func containerdPath(ctx context.Context, i *inspection) (string, error) {
	p, err := i.h.Systemd.Show(ctx, node.ContainerdUnit, "MainPID")
	if err != nil {
		return "", err
	}
	path := usualPath
	if pid, _ := strconv.Atoi(p["MainPID"]); pid > 0 {
		environ, err := os.ReadFile(filepath.Join(node.Proc, strconv.Itoa(pid), "environ"))
		if err != nil {
			return "", fmt.Errorf("read containerd's environment: %w", err)
		}
		for _, variable := range strings.Split(string(environ), "\x00") {
			if value, ok := strings.CutPrefix(variable, "PATH="); ok {
				path = value
			}
		}
	}
	return path, nil
}

// shimOf returns the program of a runtime type (containerd pkg/shim, BinaryName): its last two parts tell it, or it is a path itself.
func shimOf(runtimeType string) string {
	if filepath.IsAbs(runtimeType) {
		return runtimeType
	}
	parts := strings.Split(runtimeType, ".")
	if len(parts) < 2 || parts[0] == "" {
		return ""
	}
	return "containerd-shim-" + parts[len(parts)-2] + "-" + parts[len(parts)-1]
}

// finds reports whether a program exists in one of a PATH's directories, or as the path that it is.
func finds(path, program string) bool {
	dirs := filepath.SplitList(path)
	if strings.Contains(program, "/") {
		dirs = []string{""}
	}
	return slices.ContainsFunc(dirs, func(dir string) bool {
		info, err := os.Stat(filepath.Join(dir, program))
		return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
	})
}
