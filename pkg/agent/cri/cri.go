// Package cri asks a container runtime through the CRI what a kubelet would ask it: whether it is ready, and to run a pod
// sandbox with a container. It pulls nothing. The agent's steps call it, on containerd and on cri-dockerd.
package cri

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage bounds a gRPC message in bytes, as in the kubelet.
const maxMessage = 16 << 20

// Client talks to one CRI endpoint, in runtime.v1: containerd from 1.6 on and cri-dockerd from 0.2 on speak it, dockershim does
// not. Each call is given up after a while, whatever its context allows.
type Client struct {
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	image   runtimeapi.ImageServiceClient
}

// Dial connects to endpoint, a path or a unix:// URL, and waits until ctx ends for it to answer Version.
func Dial(ctx context.Context, endpoint string) (*Client, error) {
	target := endpoint
	if !strings.Contains(target, "://") {
		target = "unix://" + target
	}
	params := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 3 * time.Second}
	params.Backoff.BaseDelay, params.Backoff.MaxDelay = 50*time.Millisecond, time.Second
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(params),
		grpc.WithUnaryInterceptor(bounded(timeout)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connect to CRI endpoint %s: %w", endpoint, err)
	}
	c := &Client{conn: conn, runtime: runtimeapi.NewRuntimeServiceClient(conn), image: runtimeapi.NewImageServiceClient(conn)}
	if err := c.waitForVersion(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to CRI endpoint %s: %w", endpoint, err)
	}
	return c, nil
}

// waitForVersion repeats the call while nobody listens, and while containerd that has just started says "server is not initialized
// yet", which up to 1.7 comes as code Unknown (pkg/cri/server/instrumented_service.go, checkInitialized). Any other answer is final,
// most of all Unimplemented: CRI is off.
func (c *Client) waitForVersion(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
		switch status.Code(err) {
		case codes.Unavailable, codes.Unknown:
		case codes.DeadlineExceeded: // of this call or of ctx
			if ctx.Err() != nil {
				return call("Version", err)
			}
		default:
			return call("Version", err)
		}
		select {
		case <-ctx.Done():
			return call("Version", err)
		case <-tick.C:
		}
	}
}

// With calls do with a client of endpoint, and closes it. ctx bounds the connecting alone: see Dial.
func With(ctx context.Context, endpoint string, do func(*Client) error) error {
	c, err := Dial(ctx, endpoint)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return do(c)
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// call names the CRI call that failed.
func call(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

// Report is what Check found.
type Report struct {
	RuntimeName    string // "containerd", "docker" (cri-dockerd), "cri-o"
	RuntimeVersion string // as the runtime writes it: "1.6.20~ds1", "2.4.2"
	RuntimeReady   bool
	NetworkReady   bool
	// Message is what the runtime says about the conditions that are false.
	Message string
	// CgroupDriver is "systemd" or "cgroupfs", empty if the runtime does not tell (containerd before 2.0).
	CgroupDriver string
}

// Ready tells whether pods can run.
func (r Report) Ready() bool { return r.RuntimeReady && r.NetworkReady }

// Check asks for version, status and configuration. A condition that is false is in the Report and not an error.
func (c *Client) Check(ctx context.Context) (Report, error) {
	version, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return Report{}, call("Version", err)
	}
	report := Report{RuntimeName: version.GetRuntimeName(), RuntimeVersion: version.GetRuntimeVersion()}
	answer, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return report, call("Status", err)
	}
	var messages []string
	for _, condition := range answer.GetStatus().GetConditions() {
		switch condition.GetType() {
		case "RuntimeReady":
			report.RuntimeReady = condition.GetStatus()
		case "NetworkReady":
			report.NetworkReady = condition.GetStatus()
		default:
			continue // ContainerdHasNoDeprecationWarnings hurts no pod
		}
		if !condition.GetStatus() {
			messages = append(messages, fmt.Sprintf("%s is false: %s: %s", condition.GetType(), condition.GetReason(), condition.GetMessage()))
		}
	}
	report.Message = strings.Join(messages, "; ")
	config, err := c.runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	switch {
	case status.Code(err) == codes.Unimplemented:
	case err != nil:
		return report, call("RuntimeConfig", err)
	case config.GetLinux() != nil:
		report.CgroupDriver = strings.ToLower(config.GetLinux().GetCgroupDriver().String())
	}
	return report, nil
}

// HasImage tells whether the runtime finds an image under ref, as the kubelet would before it pulls.
func (c *Client) HasImage(ctx context.Context, ref string) (bool, error) {
	answer, err := c.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return false, call("ImageStatus of "+ref, err)
	}
	return answer.GetImage() != nil, nil
}

// Pod names a pod.
type Pod struct {
	Namespace, Name, UID string
}

// Sandbox is a pod sandbox of the runtime's.
type Sandbox struct {
	ID      string
	Pod     Pod
	Attempt uint32
	Ready   bool
}

// Sandboxes lists all pod sandboxes, those that were stopped included.
func (c *Client) Sandboxes(ctx context.Context) ([]Sandbox, error) {
	answer, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, call("ListPodSandbox", err)
	}
	var out []Sandbox
	for _, item := range answer.GetItems() {
		meta := item.GetMetadata()
		out = append(out, Sandbox{
			ID: item.GetId(), Pod: Pod{Namespace: meta.GetNamespace(), Name: meta.GetName(), UID: meta.GetUid()},
			Attempt: meta.GetAttempt(), Ready: item.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY,
		})
	}
	return out, nil
}

// parallel bounds the calls that StopAll has under way.
const parallel = 16

// Started reports whether a container runs that was created since a time, on this host's clock.
func (c *Client) Started(ctx context.Context, since time.Time) (bool, error) {
	list, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return false, call("ListContainers", err)
	}
	return slices.ContainsFunc(list.Containers, func(c *runtimeapi.Container) bool { return c.CreatedAt >= since.UnixNano() }), nil
}

// StopAll stops all running containers, each with its pod's grace, at most limit, before it is killed, and then all pod sandboxes, ready or not, so that
// CNI DEL runs and host ports are free. Pods on the host's network come last, all of them: among them may be what CNI DEL needs, such as the network's
// own agent or the API server. Where that is down, DEL may fail or hang: for all pods together it gets detach. StopAll removes nothing, and goes on
// after a failure; the error joins the first of them.
func (c *Client) StopAll(ctx context.Context, limit, detach time.Duration) error {
	containers, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return call("ListContainers", err)
	}
	sandboxes, err := c.Sandboxes(ctx)
	errs := []error{err}
	onHost := c.onHostNetwork(ctx, sandboxes)
	stop := func(ctx context.Context, sandbox Sandbox) error {
		_, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.ID})
		return call(fmt.Sprintf("StopPodSandbox %s (%s/%s)", sandbox.ID, sandbox.Pod.Namespace, sandbox.Pod.Name), ignoreNotFound(err))
	}
	for _, last := range []bool{false, true} {
		var stops []func() error
		for _, container := range containers.GetContainers() {
			if onHost[container.GetPodSandboxId()] != last {
				continue
			}
			stops = append(stops, func() error {
				_, err := c.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: container.GetId(), Timeout: graceSeconds(container, limit)})
				return call(fmt.Sprintf("StopContainer %s (%s)", container.GetId(), container.GetMetadata().GetName()), ignoreNotFound(err))
			})
		}
		errs = append(errs, allInParallel(stops, parallel)...)
		stops = nil
		sandboxCtx, cancel := ctx, context.CancelFunc(func() {})
		if !last {
			sandboxCtx, cancel = context.WithTimeout(ctx, detach)
		}
		for _, sandbox := range sandboxes {
			if onHost[sandbox.ID] == last {
				stops = append(stops, func() error { return stop(sandboxCtx, sandbox) })
			}
		}
		errs = append(errs, allInParallel(stops, parallel)...)
		cancel()
	}
	return JoinSome(errs)
}

// shown is how many errors of a kind are reported.
const shown = 3

// JoinSome joins the first few of many errors that are much the same, and says how many there are besides. Nil ones do not count.
func JoinSome(errs []error) error {
	errs = slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	if len(errs) > shown {
		errs = append(errs[:shown:shown], fmt.Errorf("and %d more", len(errs)-shown))
	}
	return errors.Join(errs...)
}

// NetworkNamespaces returns the paths of the network namespaces that containerd made for its sandboxes, by sandbox, whether they still exist or
// not. A sandbox on the host's network has none.
func (c *Client) NetworkNamespaces(ctx context.Context) (map[string]string, error) {
	sandboxes, err := c.Sandboxes(ctx)
	if err != nil {
		return nil, err
	}
	paths := map[string]string{}
	for _, sandbox := range sandboxes {
		answer, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox.ID, Verbose: true})
		if ignoreNotFound(err) != nil {
			return paths, call("PodSandboxStatus "+sandbox.ID, err)
		}
		// internal/cri/server/podsandbox/types, SandboxInfo: the specification from 1.6 on, the metadata from 2.0 on, also without a task.
		var info struct {
			RuntimeSpec struct {
				Linux struct {
					Namespaces []struct{ Type, Path string }
				}
			}
			SandboxMetadata struct {
				Metadata struct{ NetNSPath string }
			}
		}
		if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil {
			continue
		}
		path := info.SandboxMetadata.Metadata.NetNSPath
		for _, namespace := range info.RuntimeSpec.Linux.Namespaces {
			if namespace.Type == "network" {
				path = cmp.Or(path, namespace.Path)
			}
		}
		if path != "" {
			paths[sandbox.ID] = path
		}
	}
	return paths, nil
}

// kubeletLabel is on each sandbox that a kubelet made (kubelettypes.KubernetesPodUIDLabel).
const kubeletLabel = "io.kubernetes.pod.uid"

// RemoveStopped removes the sandboxes of a kubelet's pods that were stopped, with their containers, and returns how many.
func (c *Client) RemoveStopped(ctx context.Context) (int, error) {
	answer, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY},
	}})
	if err != nil {
		return 0, call("ListPodSandbox", err)
	}
	var removals []func() error
	for _, sandbox := range answer.GetItems() {
		if sandbox.GetLabels()[kubeletLabel] == "" {
			continue
		}
		removals = append(removals, func() error {
			_, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.GetId()})
			return call("RemovePodSandbox "+sandbox.GetId(), ignoreNotFound(err))
		})
	}
	return len(removals), inParallel(removals, parallel)
}

// onHostNetwork tells of sandboxes whether they are on the host's network. One of which the runtime does not tell counts as one with a network
// of its own.
func (c *Client) onHostNetwork(ctx context.Context, sandboxes []Sandbox) map[string]bool {
	are := make([]bool, len(sandboxes))
	var asks []func() error
	for i, sandbox := range sandboxes {
		asks = append(asks, func() error {
			answer, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox.ID})
			are[i] = err == nil && answer.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
			return nil
		})
	}
	_ = inParallel(asks, parallel) // none of them fails
	onHost := map[string]bool{}
	for i, sandbox := range sandboxes {
		onHost[sandbox.ID] = are[i]
	}
	return onHost
}

// annotationGrace is where the kubelet notes a pod's terminationGracePeriodSeconds (kuberuntime/labels.go,
// podTerminationGracePeriodLabel).
const annotationGrace = "io.kubernetes.pod.terminationGracePeriod"

// graceSeconds is what the container's pod wants between the stop signal and SIGKILL, at most limit; limit if nothing is noted.
func graceSeconds(container *runtimeapi.Container, limit time.Duration) int64 {
	most := int64((limit + time.Second - 1) / time.Second)
	seconds, err := strconv.ParseInt(container.GetAnnotations()[annotationGrace], 10, 64)
	if err != nil || seconds < 0 {
		return most
	}
	return min(seconds, most)
}

// inParallel runs all of them, so many at a time, and joins their errors in order.
func inParallel(tasks []func() error, atOnce int) error {
	return errors.Join(allInParallel(tasks, atOnce)...)
}

// allInParallel is inParallel with each task's error by itself.
func allInParallel(tasks []func() error, atOnce int) []error {
	errs := make([]error, len(tasks))
	slots := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	for i, task := range tasks {
		wait.Add(1)
		slots <- struct{}{}
		go func() {
			defer wait.Done()
			errs[i] = task()
			<-slots
		}()
	}
	wait.Wait()
	return errs
}

func ignoreNotFound(err error) error {
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}
