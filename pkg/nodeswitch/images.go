package nodeswitch

import (
	"context"
	"fmt"
	"slices"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/oldapi"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/paging"
)

// maxImages bounds the images that a Job names, in bytes: they are one argument of a program, of which Linux takes 128 KiB.
const maxImages = 64 << 10

// maxImageName bounds the name of one image, in bytes: a name has 255 at most, a tag 128, a digest of SHA-512 136
// (github.com/distribution/reference, regexp.go). No runtime pulls a longer one.
const maxImageName = 1 << 10

// workloadImages are the images of all workloads' pod templates, read once for all nodes.
type workloadImages struct {
	once   sync.Once
	images []string
	err    error
}

// imagesToBring are the images that the agent is to bring to the new runtime, of those that Docker has: what the node's pods use, and
// what any workload may yet send here. While the nodes of a cluster are switched, pods move from each to the others; what
// they need there has to be there, or it would be pulled again.
func (s *hostWork) imagesToBring(ctx context.Context, pods []corev1.Pod) []string {
	var specs []*corev1.PodSpec
	for i := range pods {
		specs = append(specs, &pods[i].Spec)
	}
	own := imagesOf(specs)
	if s.options.CanaryImage != s.options.Image { // the agent's is brought anyway
		own = append(own, s.options.CanaryImage)
	}
	s.workloads.once.Do(func() { s.workloads.images, s.workloads.err = s.templateImages(ctx) })
	if s.workloads.err != nil {
		s.tell(Warning, "only the images of the node's own pods are brought: %s", s.workloads.err)
	}
	size := 0
	var all []string
	for _, image := range append(own, s.workloads.images...) {
		if len(image) > maxImageName {
			s.tell(Warning, "an image name of %d bytes is skipped, since no runtime can pull it: %.60q…", len(image), image)
			continue
		}
		if size += len(image) + len(`"",`); size > maxImages {
			s.tell(Warning, "only %d images are brought; pods that come with others pull these", len(all))
			break
		}
		all = append(all, image)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// templateImages reads the pod templates of Deployments, StatefulSets, DaemonSets and CronJobs.
func (r *Switcher) templateImages(ctx context.Context) ([]string, error) {
	apps := r.client.AppsV1()
	var images []string
	add := func(template *corev1.PodSpec) bool {
		images = append(images, imagesOf([]*corev1.PodSpec{template})...)
		return true
	}
	for _, list := range []struct {
		kind string
		read func() error
	}{
		{"deployments", func() error {
			return paging.Each(ctx, apps.Deployments(metav1.NamespaceAll).List, metav1.ListOptions{}, func(d *appsv1.Deployment) bool { return add(&d.Spec.Template.Spec) })
		}},
		{"statefulsets", func() error {
			return paging.Each(ctx, apps.StatefulSets(metav1.NamespaceAll).List, metav1.ListOptions{}, func(s *appsv1.StatefulSet) bool { return add(&s.Spec.Template.Spec) })
		}},
		{"daemonsets", func() error {
			return paging.Each(ctx, apps.DaemonSets(metav1.NamespaceAll).List, metav1.ListOptions{}, func(d *appsv1.DaemonSet) bool { return add(&d.Spec.Template.Spec) })
		}},
		{"cronjobs", func() error {
			list := func(ctx context.Context, options metav1.ListOptions) (*batchv1.CronJobList, error) {
				return oldapi.ListCronJobs(ctx, r.client, metav1.NamespaceAll, options)
			}
			return paging.Each(ctx, list, metav1.ListOptions{}, func(c *batchv1.CronJob) bool { return add(&c.Spec.JobTemplate.Spec.Template.Spec) })
		}},
	} {
		if err := list.read(); err != nil {
			return images, fmt.Errorf("list %s: %w", list.kind, err)
		}
	}
	return images, nil
}

// imagesOf are the images that pods name, sorted, each once.
func imagesOf(specs []*corev1.PodSpec) []string {
	var images []string
	for _, spec := range specs {
		for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
			for _, container := range containers {
				images = append(images, container.Image)
			}
		}
	}
	slices.Sort(images)
	return slices.DeleteFunc(slices.Compact(images), func(image string) bool { return image == "" })
}
