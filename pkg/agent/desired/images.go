package desired

import (
	"slices"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// Images are the images to bring. By default they are those that this node's pods run on, or would: what the plugin names, what
// Docker's pods use, the agent's own and the sandbox image. The kubelet makes Docker's containers from image IDs; one whose image has a tag is named by that.
func Images(h *node.Host, containers []docker.Container, have []docker.Image, sandboxImage string) []string {
	refs := []string{sandboxImage, h.Spec.Image}
	switch h.Spec.ImageSet {
	case protocol.ImagesNone:
		containers = nil
	case protocol.ImagesAll:
		for _, image := range have {
			refs = append(refs, append(slices.Clone(image.RepoTags), image.ID)[0])
		}
	default:
		refs = append(refs, h.Spec.Images...)
	}
	for _, c := range containers {
		if !c.Kubernetes() {
			continue
		}
		ref := c.Image
		for _, image := range have {
			if image.ID == c.ImageID && len(image.RepoTags) > 0 {
				ref = image.RepoTags[0]
			}
		}
		refs = append(refs, ref)
	}
	slices.Sort(refs)
	return slices.DeleteFunc(slices.Compact(refs), func(ref string) bool { return ref == "" })
}

// UsedNames are images that pods of this node want, whether they run or not.
func UsedNames(h *node.Host, sandboxImage string) []string {
	return append([]string{sandboxImage, h.Spec.Image}, h.Spec.Images...)
}
