package desired

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
)

// Registry is a registry that images of this node's pods came from.
type Registry struct {
	Host   string // as in image names, e.g. docker.io
	Ref    string // one of the images, as a full name
	Images int
}

// RegistriesInUse finds the registries behind the images of Docker's pods and those with one of the names. An image that Docker has no
// digest for was built or loaded on the node.
func RegistriesInUse(containers []docker.Container, names []string, images []docker.Image) []Registry {
	ids, wanted := map[string]bool{}, map[string]bool{}
	for _, c := range containers {
		ids[c.ImageID] = ids[c.ImageID] || c.Kubernetes()
	}
	for _, name := range names {
		if ref, err := reference.ParseDockerRef(name); err == nil {
			wanted[ref.String()] = true
		}
	}
	found := map[string]Registry{}
	for _, image := range images {
		var tags, refs, names []reference.Named
		for _, tag := range image.RepoTags {
			if ref, err := reference.ParseDockerRef(tag); err == nil {
				tags = append(tags, ref)
			}
		}
		for _, digest := range image.RepoDigests {
			ref, err := reference.ParseDockerRef(digest)
			if err != nil {
				continue
			}
			names = append(names, ref)
			// A tag is asked for where there is one: of a digest that is not there, containerd would ask twice.
			if i := slices.IndexFunc(tags, func(tag reference.Named) bool { return tag.Name() == ref.Name() }); i >= 0 {
				ref = tags[i]
			}
			refs = append(refs, ref)
		}
		if !ids[image.ID] && !slices.ContainsFunc(append(names, tags...), func(ref reference.Named) bool { return wanted[ref.String()] }) {
			continue
		}
		hosts := map[string]bool{}
		for _, ref := range refs {
			host := reference.Domain(ref)
			r := found[host]
			if !hosts[host] {
				r.Images++
				hosts[host] = true
			}
			if r.Host = host; r.Ref == "" || ref.String() < r.Ref {
				r.Ref = ref.String()
			}
			found[host] = r
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b Registry) int { return strings.Compare(a.Host, b.Host) })
}

// RegistriesOf returns the hosts, with ports, in images' names, each once; Docker Hub's images have none.
func RegistriesOf(images []string) []string {
	var hosts []string
	for _, image := range images {
		host, _, ok := strings.Cut(image, "/")
		if ok && (strings.ContainsAny(host, ".:") || host == "localhost") && host != "docker.io" {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// RegistryAuth returns what a file in the format of docker login has for an image's registry, empty for Docker Hub and for helpers,
// which Kubernetes does not read either.
func RegistryAuth(file, image string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var config struct {
		Auths map[string]struct {
			Auth string `json:"auth"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return "", err
	}
	hosts := RegistriesOf([]string{image})
	for name, entry := range config.Auths {
		name = strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://")
		name, _, _ = strings.Cut(name, "/")
		if len(hosts) == 1 && name == hosts[0] && entry.Auth != "" {
			return entry.Auth, nil
		}
	}
	return "", nil
}
