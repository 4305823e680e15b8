// Package docker reads what Docker Engine holds on this host and stops its containers. It never removes anything: what
// Docker holds is the way back. The agent's steps and package images call it.
package docker

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
)

// DefaultSocket is where dockerd listens unless its configuration says otherwise.
const DefaultSocket = "unix:///var/run/docker.sock"

// DefaultNamespace is Docker's in containerd unless its configuration says otherwise.
const DefaultNamespace = "moby"

// Labels that dockershim and cri-dockerd put on every container they make (pkg/kubelet/dockershim/docker_service.go and
// pkg/kubelet/types/labels.go of Kubernetes 1.23).
const (
	labelType      = "io.kubernetes.docker.type"
	labelGrace     = "annotation.io.kubernetes.pod.terminationGracePeriod"
	labelPodName   = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelUID       = "io.kubernetes.pod.uid"
)

// Client talks to one Docker Engine. It is safe for concurrent use.
type Client struct {
	api *client.Client
}

// Dial prepares a client for the engine behind socket, a URL such as unix:///var/run/docker.sock; empty means DefaultSocket.
// It speaks the newest API that both sides know, from 1.24 on, and connects with the first call.
func Dial(socket string) (*Client, error) {
	if socket == "" {
		socket = DefaultSocket
	}
	api, err := client.NewClientWithOpts(client.WithHost(socket), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("docker client for %s: %w", socket, err)
	}
	return &Client{api: api}, nil
}

// With calls do with a client of the engine behind socket, and closes it.
func With(socket string, do func(*Client) error) error {
	c, err := Dial(socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return do(c)
}

// Close ends idle connections.
func (c *Client) Close() error { return c.api.Close() }

// Info is what the engine says about itself.
type Info struct {
	Version string
	// Root is Docker's data directory on the host, e.g. /var/lib/docker.
	Root          string
	CgroupDriver  string // systemd or cgroupfs
	CgroupVersion string // "1" or "2"; empty before Docker 20.10, which knows only 1
	StorageDriver string // overlay2, or a containerd snapshotter such as overlayfs
	// ContainerdStore tells that images are kept in containerd's content store: their IDs are then manifest digests, not
	// config digests.
	ContainerdStore bool
	// Namespace is Docker's in containerd. Engines before 27 do not tell it; they are taken to have the default.
	Namespace      string
	LiveRestore    bool
	DefaultRuntime string
	// Swarm tells that the engine is a member of a Docker Swarm, SwarmManager that it is one of its managers.
	Swarm, SwarmManager bool
}

// Info asks the engine for its settings.
func (c *Client) Info(ctx context.Context) (Info, error) {
	info, err := c.api.Info(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("docker info: %w", err)
	}
	out := Info{
		Version:        info.ServerVersion,
		Root:           info.DockerRootDir,
		CgroupDriver:   info.CgroupDriver,
		CgroupVersion:  info.CgroupVersion,
		StorageDriver:  info.Driver,
		Namespace:      DefaultNamespace,
		LiveRestore:    info.LiveRestoreEnabled,
		DefaultRuntime: info.DefaultRuntime,
		Swarm:          info.Swarm.LocalNodeState != "" && info.Swarm.LocalNodeState != swarm.LocalNodeStateInactive,
		SwarmManager:   info.Swarm.ControlAvailable,
	}
	if info.Containerd != nil && info.Containerd.Namespaces.Containers != "" {
		out.Namespace = info.Containerd.Namespaces.Containers
	}
	for _, status := range info.DriverStatus {
		// daemon/containerd/service.go of Docker 25 and later.
		if status[0] == "driver-type" && strings.HasPrefix(status[1], "io.containerd.snapshotter") {
			out.ContainerdStore = true
		}
	}
	return out, nil
}

// Container is one container, running or not.
type Container struct {
	ID      string // 64 hexadecimal digits
	Name    string // without the leading slash
	Image   string // as it was asked for: name, name@digest or ID
	ImageID string // "sha256:…"
	Labels  map[string]string
	Running bool
	// PID is the first process's in the host's PID namespace, 0 if the container does not run.
	PID int
	// HostNetwork tells that the container has the host's network and so no CNI attachment.
	HostNetwork bool
	// RestartPolicy is Docker's own: "", "no", "always", "unless-stopped" or "on-failure". Pods' containers have none.
	RestartPolicy string
}

// Kubernetes tells whether dockershim or cri-dockerd made the container. Names are not looked at: anyone may use k8s_.
func (c Container) Kubernetes() bool { return c.Labels[labelType] != "" }

// Sandbox tells whether the container is a pod's sandbox (the pause container).
func (c Container) Sandbox() bool { return c.Labels[labelType] == "podsandbox" }

// Grace is what the container's pod wants between the stop signal and SIGKILL (its terminationGracePeriodSeconds, which the kubelet
// notes on each container: kuberuntime/labels.go, podTerminationGracePeriodLabel), at most limit; limit if nothing is noted.
func (c Container) Grace(limit time.Duration) time.Duration {
	seconds, err := strconv.ParseInt(c.Labels[labelGrace], 10, 32)
	if err != nil || seconds < 0 {
		return limit
	}
	return min(time.Duration(seconds)*time.Second, limit)
}

// Pod returns the pod that a Kubernetes container belongs to.
func (c Container) Pod() (namespace, name, uid string) {
	return c.Labels[labelNamespace], c.Labels[labelPodName], c.Labels[labelUID]
}

// Containers lists all containers, those that exited included. One that is removed while the list is made is left out.
func (c *Client) Containers(ctx context.Context) ([]Container, error) {
	list, err := c.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("list docker containers: %w", err)
	}
	out := make([]Container, 0, len(list))
	for _, summary := range list {
		// Only inspect knows PID and restart policy.
		full, err := c.api.ContainerInspect(ctx, summary.ID)
		if cerrdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("inspect docker container %s: %w", summary.ID, err)
		}
		out = append(out, newContainer(full))
	}
	return out, nil
}

func newContainer(full container.InspectResponse) Container {
	out := Container{}
	if base := full.ContainerJSONBase; base != nil {
		out.ID, out.Name, out.ImageID = base.ID, strings.TrimPrefix(base.Name, "/"), base.Image
		if base.State != nil {
			out.Running, out.PID = base.State.Running, base.State.Pid
		}
		if base.HostConfig != nil {
			out.HostNetwork = base.HostConfig.NetworkMode.IsHost()
			out.RestartPolicy = string(base.HostConfig.RestartPolicy.Name)
		}
	}
	if full.Config != nil {
		out.Image, out.Labels = full.Config.Image, full.Config.Labels
	}
	return out
}

// Stop sends a container its stop signal and, after grace (rounded up to seconds), SIGKILL. It returns when the container
// has ended. One that does not run or does not exist is fine.
func (c *Client) Stop(ctx context.Context, id string, grace time.Duration) error {
	seconds := int(math.Ceil(grace.Seconds()))
	err := c.api.ContainerStop(ctx, id, container.StopOptions{Timeout: &seconds})
	if err != nil && !cerrdefs.IsNotFound(err) && !cerrdefs.IsNotModified(err) {
		return fmt.Errorf("stop docker container %s: %w", id, err)
	}
	return nil
}

// Kill sends a container SIGKILL and does not wait for its end. One that does not run or does not exist is fine.
func (c *Client) Kill(ctx context.Context, id string) error {
	err := c.api.ContainerKill(ctx, id, "KILL")
	if err != nil && !cerrdefs.IsNotFound(err) && !cerrdefs.IsConflict(err) { // a conflict is "is not running"
		return fmt.Errorf("kill docker container %s: %w", id, err)
	}
	return nil
}

// Image is one image of Docker's.
type Image struct {
	// ID is "sha256:…": the config's digest, or the manifest's with Info.ContainerdStore.
	ID string
	// RepoTags are familiar names with tags ("busybox:1", "quay.io/x/y:v1"); dangling images have none.
	RepoTags []string
	// RepoDigests are familiar names with the registry's manifest digest ("busybox@sha256:…"). Only Docker knows these:
	// they are not in what it exports.
	RepoDigests []string
	// Size is that of all layers unpacked, in bytes. With Info.ContainerdStore it is that of the image's blobs, and in Images both.
	Size int64
	// Platform is what the image's programs run on, e.g. "linux/arm64"; empty in Images, which does not tell it.
	Platform string
}

// Images lists all images that a container could be made from; build cache layers are left out.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	list, err := c.api.ImageList(ctx, image.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list docker images: %w", err)
	}
	out := make([]Image, 0, len(list))
	for _, summary := range list {
		out = append(out, newImage(summary.ID, summary.RepoTags, summary.RepoDigests, summary.Size))
	}
	return out, nil
}

// Image looks one image up by name, name@digest, or ID. An image that Docker does not have is an error for which IsNotFound
// is true.
func (c *Client) Image(ctx context.Context, ref string) (Image, error) {
	full, err := c.api.ImageInspect(ctx, ref)
	if err != nil {
		return Image{}, fmt.Errorf("inspect docker image %s: %w", ref, err)
	}
	found := newImage(full.ID, full.RepoTags, full.RepoDigests, full.Size)
	if full.Os != "" && full.Architecture != "" {
		found.Platform = full.Os + "/" + full.Architecture
	}
	return found, nil
}

// newImage drops the placeholders that engines up to 24 list for dangling images.
func newImage(id string, tags, digests []string, size int64) Image {
	out := Image{ID: id, Size: size}
	for _, tag := range tags {
		if tag != "<none>:<none>" {
			out.RepoTags = append(out.RepoTags, tag)
		}
	}
	for _, dgst := range digests {
		if dgst != "<none>@<none>" {
			out.RepoDigests = append(out.RepoDigests, dgst)
		}
	}
	return out
}

// Save streams an image as a tar: docker-archive up to engine 24, with an OCI layout beside it from 25 on. Engines with a
// graph driver first write all of it to a temporary directory in their data root. After the first byte an engine can
// report an error only by ending the stream, so the reader has to check what arrived. The caller closes the stream.
func (c *Client) Save(ctx context.Context, ref string) (io.ReadCloser, error) {
	stream, err := c.api.ImageSave(ctx, []string{ref})
	if err != nil {
		return nil, fmt.Errorf("save docker image %s: %w", ref, err)
	}
	return stream, nil
}

// IsNotFound tells whether err says that Docker does not have the object.
func IsNotFound(err error) bool { return cerrdefs.IsNotFound(err) }
