package steps

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/pods"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/redact"
)

const (
	// registryWait and dockerRegistryWait bound the questions to all registries, which are asked side by side. Docker gives a registry that
	// is silent 15 s.
	registryWait, dockerRegistryWait = 12 * time.Second, 20 * time.Second
	// maxRegistries bounds how many are asked; more are named.
	maxRegistries, registriesAtOnce = 32, 8
)

// triedRegistry is a registry, and what containerd's configuration made of it.
type triedRegistry struct {
	desired.Registry
	attempts []containerd.Attempt
	err      error // it was not asked
}

func (r triedRegistry) answered() bool {
	return slices.ContainsFunc(r.attempts, func(a containerd.Attempt) bool { return a.Answered })
}

// failures are the endpoints that did not answer, and why.
func (r triedRegistry) failures() string {
	var out []string
	if r.err != nil {
		out = append(out, r.err.Error())
	}
	for _, a := range r.attempts {
		if !a.Answered {
			out = append(out, fmt.Sprintf("%s: %v", a.Endpoint, a.Err))
		}
	}
	return string(redact.Text([]byte(strings.Join(out, "; "))))
}

// tryRegistries asks each registry in use for a manifest as containerd would, and refuses where it answers Docker alone: pods would not find
// out before their first pull. Credentials of pods are the kubelet's, so that a registry that wants some has answered.
func tryRegistries(ctx context.Context, h *node.Host, found facts.Found, report engine.Report) error {
	return docker.With(found.DockerSocket, func(d *docker.Client) error {
		inUse, err := findRegistries(ctx, h, d, found)
		if err != nil || len(inUse) == 0 {
			return err
		}
		for _, r := range inUse[min(len(inUse), maxRegistries):] {
			report.Info(fmt.Sprintf("registry %s is not tried: the node uses more than %d", r.Host, maxRegistries))
		}
		inUse = inUse[:min(len(inUse), maxRegistries)]
		report.Progress(fmt.Sprintf("ask %d registries", len(inUse)), 0, 0, "")
		resolve, auth, err := registryResolver(ctx, h, found)
		if err != nil {
			return err
		}
		tried := tryAll(ctx, inUse, resolve)
		var silent []desired.Registry
		for _, r := range tried {
			if !r.answered() {
				silent = append(silent, r.Registry)
			}
		}
		docker := askDocker(ctx, d, silent, auth)
		var again []desired.Registry
		for _, r := range silent {
			if docker[r.Host].answered {
				again = append(again, r)
			}
		}
		// Docker's word is newer: the registry may have been away for a moment.
		for _, r := range tryAll(ctx, again, resolve) {
			tried[slices.IndexFunc(tried, func(t triedRegistry) bool { return t.Host == r.Host })] = r
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, r := range tried {
			if err := r.judge(docker[r.Host], report); err != nil {
				return err
			}
		}
		return nil
	})
}

// judge reports how the registry was reached, or refuses.
func (r triedRegistry) judge(byDocker dockersAnswer, report engine.Report) error {
	if !r.answered() && byDocker.answered {
		return node.Refuse("correct what containerd's certs.d has of it, its proxies, or the registry's certificate",
			"registry %s answers Docker, and does not answer containerd, so that pods could pull nothing from it (asked for %s): %s", r.Host, r.Ref, r.failures())
	}
	if !r.answered() {
		report.Info(fmt.Sprintf("registry %s answers neither containerd nor Docker: %s; %s", r.Host, r.failures(), redact.Text([]byte(byDocker.err.Error()))))
		return nil
	}
	last := r.attempts[len(r.attempts)-1]
	if i := slices.IndexFunc(r.attempts, func(a containerd.Attempt) bool { return a.Answered }); !last.Answered {
		last = r.attempts[i]
	}
	// An insecure registry is tried over HTTPS first, as Docker tries it: that this fails is nothing to look at.
	others := triedRegistry{attempts: slices.DeleteFunc(slices.Clone(r.attempts), func(a containerd.Attempt) bool { return hostOf(a.Endpoint) == hostOf(last.Endpoint) })}
	if failures := others.failures(); failures != "" {
		report.Warn(fmt.Sprintf("registry %s: an endpoint that is tried for it does not answer containerd: %s", r.Host, failures))
	}
	if last.Has {
		report.Info(fmt.Sprintf("registry %s answers containerd at %s", r.Host, last.Endpoint))
	} else {
		report.Info(fmt.Sprintf("registry %s answers containerd at %s, and wants credentials or does not have the image: %s", r.Host, last.Endpoint, redact.Text([]byte(last.Err.Error()))))
	}
	return nil
}

func hostOf(endpoint string) string {
	_, host, _ := strings.Cut(endpoint, "://")
	return host
}

// findRegistries asks Docker what the node's pods use now.
func findRegistries(ctx context.Context, h *node.Host, d *docker.Client, found facts.Found) ([]desired.Registry, error) {
	containers, err := pods.DockerContainers(ctx, d)
	if err != nil {
		return nil, err
	}
	var images []docker.Image
	err = host.Within(ctx, pods.ListTimeout, func(ctx context.Context) error {
		images, err = d.Images(ctx)
		return err
	})
	return desired.RegistriesInUse(containers, desired.UsedNames(h, found.Facts.SandboxImage), images), err
}

type resolveFunc func(ctx context.Context, ref string) ([]containerd.Attempt, error)

// resolver asks registries with the configuration and the environment of the running containerd. auth are the credentials that it has itself,
// by host: USER:PASSWORD.
func registryResolver(ctx context.Context, h *node.Host, found facts.Found) (resolve resolveFunc, auth map[string]string, err error) {
	config, err := host.ReadFile(found.ContainerdConfig)
	if err != nil {
		return nil, nil, err
	}
	effective, err := desired.EffectiveContainerd(ctx, h, found, config)
	if err != nil {
		return nil, nil, err
	}
	p, err := h.Systemd.Show(ctx, node.ContainerdUnit, "MainPID")
	if err != nil {
		return nil, nil, err
	}
	pid, _ := strconv.Atoi(p["MainPID"])
	environ, err := os.ReadFile(filepath.Join(node.Proc, strconv.Itoa(pid), "environ"))
	if err != nil {
		return nil, nil, fmt.Errorf("read containerd's environment: %w", err)
	}
	auth = map[string]string{}
	if found.SandboxAuthFile != "" {
		encoded, err := desired.RegistryAuth(found.SandboxAuthFile, found.Facts.SandboxImage)
		if err != nil {
			return nil, nil, fmt.Errorf("read credentials for the sandbox image: %w", err)
		}
		if decoded, err := base64.StdEncoding.DecodeString(encoded); err == nil {
			for _, host := range desired.RegistriesOf([]string{found.Facts.SandboxImage}) {
				auth[host] = string(decoded)
			}
		}
	}
	credentials := func(host string) (string, string, error) {
		user, secret, _ := strings.Cut(auth[host], ":")
		return user, secret, nil
	}
	return func(ctx context.Context, ref string) ([]containerd.Attempt, error) {
		return containerd.Resolve(ctx, effective.RegistryDir, ref, strings.Split(string(environ), "\x00"), credentials)
	}, auth, nil
}

func tryAll(ctx context.Context, registries []desired.Registry, resolve resolveFunc) []triedRegistry {
	ctx, cancel := context.WithTimeout(ctx, registryWait)
	defer cancel()
	tried := make([]triedRegistry, len(registries))
	var group errgroup.Group
	group.SetLimit(registriesAtOnce)
	for n, r := range registries {
		group.Go(func() error {
			attempts, err := resolve(ctx, r.Ref)
			tried[n] = triedRegistry{Registry: r, attempts: attempts, err: err}
			return nil
		})
	}
	_ = group.Wait() // none fails
	return tried
}

type dockersAnswer struct {
	answered bool
	err      error
}

// askDocker asks the same through Docker. Its engine fetches the manifest, which a registry may count as a pull, so that only those are asked
// that did not answer containerd.
func askDocker(ctx context.Context, d *docker.Client, registries []desired.Registry, auth map[string]string) map[string]dockersAnswer {
	ctx, cancel := context.WithTimeout(ctx, dockerRegistryWait)
	defer cancel()
	answers := make([]dockersAnswer, len(registries))
	var group errgroup.Group
	group.SetLimit(registriesAtOnce)
	for n, r := range registries {
		group.Go(func() error {
			answers[n].answered, answers[n].err = d.AskRegistry(ctx, r.Ref, authHeader(auth[r.Host]))
			return nil
		})
	}
	_ = group.Wait() // none fails
	byHost := map[string]dockersAnswer{}
	for n, r := range registries {
		byHost[r.Host] = answers[n]
	}
	return byHost
}

// authHeader is Docker's X-Registry-Auth; empty without credentials.
func authHeader(auth string) string {
	user, secret, ok := strings.Cut(auth, ":")
	if !ok {
		return ""
	}
	data, err := json.Marshal(map[string]string{"username": user, "password": secret})
	if err != nil {
		return ""
	}
	return base64.URLEncoding.EncodeToString(data)
}
