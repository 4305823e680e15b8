package containerd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"golang.org/x/net/http/httpproxy"
)

// Attempt is one endpoint that was asked for an image's manifest.
type Attempt struct {
	// Endpoint is SCHEME://HOST[:PORT].
	Endpoint string
	// Has tells that the endpoint has the manifest. Err tells why not; of an endpoint that answered as a registry does, Answered is set
	// nevertheless: it does not have that image, or wants credentials.
	Has, Answered bool
	Err           error
}

// Resolve asks for an image's manifest as a pull by containerd would: through the hosts.toml files in dir (a config_path), endpoint after
// endpoint until one has it, with the proxies in environ (containerd's, as NAME=VALUE). Each is asked once, with HEAD; where it wants a
// token that anyone may have, that is fetched, too. Nothing is pulled. credentials may be nil; of a host that it has none for it returns
// empty texts. ref is a full name, such as docker.io/library/busybox:1. Only what keeps it from asking anyone is an error.
func Resolve(ctx context.Context, dir, ref string, environ []string, credentials func(host string) (user, secret string, err error)) ([]Attempt, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", ref, err)
	}
	hosts, err := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:      config.HostDirFromRoot(dir),
		Credentials:  credentials,
		UpdateClient: func(c *http.Client) error { return setProxy(c, environ) },
	})(spec.Hostname())
	if err != nil {
		return nil, fmt.Errorf("read what %s says of registry %s: %w", dir, spec.Hostname(), err)
	}
	need := docker.HostCapabilityPull
	if spec.Digest() == "" {
		need |= docker.HostCapabilityResolve
	}
	var attempts []Attempt
	for _, host := range hosts {
		if !host.Capabilities.Has(need) {
			continue
		}
		_, _, err := docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) { return []docker.RegistryHost{host}, nil }}).Resolve(ctx, ref)
		attempts = append(attempts, Attempt{Endpoint: host.Scheme + "://" + host.Host, Has: err == nil, Answered: answered(err), Err: err})
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	if len(attempts) == 0 {
		return nil, fmt.Errorf("%s has no endpoint that images of registry %s could be pulled from", dir, spec.Hostname())
	}
	return attempts, nil
}

// answered reports whether an error comes from a registry that was reached.
func answered(err error) bool {
	if err == nil || errdefs.IsNotFound(err) || errors.Is(err, docker.ErrInvalidAuthorization) {
		return true
	}
	var status remoteerrors.ErrUnexpectedStatus
	if !errors.As(err, &status) {
		return false
	}
	switch status.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusTooManyRequests:
		return true
	}
	return false
}

// setProxy has a client use the proxies of another process's environment, as Go's own programs do.
func setProxy(c *http.Client, environ []string) error {
	transport, ok := c.Transport.(*http.Transport)
	if !ok {
		return fmt.Errorf("set the proxy: the client's transport is a %T", c.Transport)
	}
	value := func(name string) string {
		for _, n := range []string{name, strings.ToLower(name)} {
			for _, variable := range environ {
				if v, ok := strings.CutPrefix(variable, n+"="); ok && v != "" {
					return v
				}
			}
		}
		return ""
	}
	proxy := (&httpproxy.Config{HTTPProxy: value("HTTP_PROXY"), HTTPSProxy: value("HTTPS_PROXY"), NoProxy: value("NO_PROXY")}).ProxyFunc()
	transport.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	return nil
}
