package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
)

// AskRegistry has the engine fetch the manifest of an image from its registry, through its own mirrors, certificates and proxies, and with
// credentials, if auth (an X-Registry-Auth header) is not empty. It returns whether the registry answered, be it that it does not have the
// image or wants credentials, and the error if the manifest did not come. Nothing is kept.
func (c *Client) AskRegistry(ctx context.Context, ref, auth string) (answered bool, err error) {
	if _, err = c.api.DistributionInspect(ctx, ref, auth); err == nil {
		return true, nil
	}
	answered = cerrdefs.IsUnauthorized(err) || cerrdefs.IsPermissionDenied(err) || cerrdefs.IsNotFound(err) ||
		slices.ContainsFunc(registryWords, func(words string) bool { return strings.Contains(err.Error(), words) })
	return answered, fmt.Errorf("ask for image %s through Docker: %w", ref, err)
}

// registryWords are in what engines say of a registry's own refusals (distribution's error codes), whose status they make 500 of. The last two
// come where an insecure registry refused over HTTPS, after which an engine tries plain HTTP: it verifies nothing, so that HTTPS was answered.
var registryWords = []string{
	"unauthorized", "authentication required", "no basic auth credentials", "denied: ", "manifest unknown", "name unknown", "toomanyrequests",
	"HTTP request to an HTTPS server", "HTTP request was sent to HTTPS port",
}
