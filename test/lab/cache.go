package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// kubectlBuild is the build that holds kubectl, for every profile.
const kubectlBuild = "kubernetes-1.37"

// cache is the folder outside the tree that keeps builds, root file systems and images between runs, and the running
// nodes' roots, which must be on the same file system to be copied fast.
type cache struct {
	dir   string
	repo  string
	log   io.Writer
	paths *sync.Map // build name to its folder
}

// folder returns the folder of a build's binaries, whether they are built or not.
func (c cache) folder(ctx context.Context, build string) (string, error) {
	if dir, ok := c.paths.Load(build); ok {
		return dir.(string), nil
	}
	out, err := output(ctx, filepath.Join(c.repo, "test/lab/build/build.sh"), "--path", build)
	if err != nil {
		return "", fmt.Errorf("find build %s: %w", build, err)
	}
	dir := strings.TrimSpace(out)
	c.paths.Store(build, dir)
	return dir, nil
}

// newCache finds the cache folder ($KUBECTL_RUNTIME_CACHE, or kubectl-runtime in the user's cache folder) and the checkout
// that the working directory or the program lies in.
func newCache(log io.Writer) (cache, error) {
	dir := os.Getenv("KUBECTL_RUNTIME_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return cache{}, fmt.Errorf("find cache folder: %w", err)
		}
		dir = filepath.Join(base, "kubectl-runtime")
	}
	repo, err := findRepo()
	if err != nil {
		return cache{}, err
	}
	return cache{dir: dir, repo: repo, log: log, paths: &sync.Map{}}, nil
}

func findRepo() (string, error) {
	var starts []string
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if exe, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(exe))
	}
	for _, dir := range starts {
		for ; ; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "test/lab/build/build.sh")); err == nil {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("find test/lab/build/build.sh above %s: run this inside a checkout of kubectl-runtime", strings.Join(starts, " or "))
}

// build makes sure that the named builds are in the cache; the first time that takes minutes for each.
func (c cache) build(ctx context.Context, names ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.repo, "test/lab/build/build.sh"), names...)
	cmd.Stdout, cmd.Stderr = c.log, c.log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}

// binary returns the path of a binary of a build. Builds of Kubernetes are one binary, which goes by the name it is called.
func (c cache) binary(ctx context.Context, build, name string) (string, error) {
	dir, err := c.folder(ctx, build)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(build, "kubernetes-") {
		name = build
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find %s of build %s: %w", name, build, err)
	}
	return path, nil
}

// ensureDeps installs what the lab calls, where that is missing and we may.
func (c cache) ensureDeps(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.repo, "hack/deps"))
	cmd.Stdout, cmd.Stderr = c.log, c.log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("install what the lab needs: %w", err)
	}
	return nil
}

// output runs a program and returns its standard output; an error carries what it printed.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a killed `lab up` leaves nothing that still copies
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// keyOf is a short hash of what a cached thing is made from.
func keyOf(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}
