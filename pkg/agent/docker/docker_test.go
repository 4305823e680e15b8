package docker_test

import (
	"archive/tar"
	"io"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/docker"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

func TestEngine(t *testing.T) {
	engine := agenttest.StartEngine(t)
	c, err := docker.Dial(engine.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	info, err := c.Info(t.Context())
	if err != nil || info.Root != engine.Root || info.StorageDriver != "vfs" || !info.LiveRestore || info.ContainerdStore ||
		info.DefaultRuntime != "runc" || info.CgroupDriver == "" || info.CgroupVersion == "" || info.Version == "" {
		t.Errorf("info %+v, %v", info, err)
	}

	id := engine.AddProgram("app:1")
	engine.Docker("tag", "app:1", "quay.io/x/app:2")
	image, err := c.Image(t.Context(), "quay.io/x/app:2")
	if err != nil || image.ID != id || len(image.RepoTags) != 2 || len(image.RepoDigests) != 0 || image.Size < 1<<20 {
		t.Errorf("image %+v, %v", image, err)
	}
	if _, err := c.Image(t.Context(), "gone:1"); !docker.IsNotFound(err) {
		t.Errorf("an image that is not there: %v", err)
	}
	dangling := engine.AddProgram("")
	images, err := c.Images(t.Context())
	if err != nil || len(images) != 2 {
		t.Errorf("images %+v, %v", images, err)
	}
	for _, image := range images {
		if image.ID == dangling && len(image.RepoTags)+len(image.RepoDigests) != 0 {
			t.Errorf("the dangling image has names: %+v", image)
		}
	}

	sandbox := engine.Docker("run", "-d", "--net=host", "--name=k8s_POD_web", "--label=io.kubernetes.docker.type=podsandbox",
		"--label=io.kubernetes.pod.name=web", "--label=io.kubernetes.pod.namespace=shop", "--label=io.kubernetes.pod.uid=u1", "app:1")
	foreign := engine.Docker("run", "-d", "--net=none", "--restart=always", "--name=k8s_foreign", "app:1")
	exited := engine.Docker("run", "-d", "--net=none", "--entrypoint=/program", "app:1", "version")
	engine.Docker("wait", exited)
	byID := containers(t, c)
	if got := byID[sandbox]; !got.Kubernetes() || !got.Sandbox() || !got.Running || got.PID <= 0 || !got.HostNetwork || got.Name != "k8s_POD_web" ||
		got.Image != "app:1" || got.ImageID != id {
		t.Errorf("sandbox: %+v", got)
	}
	if namespace, name, uid := byID[sandbox].Pod(); namespace != "shop" || name != "web" || uid != "u1" {
		t.Errorf("pod %s/%s %s", namespace, name, uid)
	}
	if got := byID[foreign]; got.Kubernetes() || got.Sandbox() || !got.Running || got.HostNetwork || got.RestartPolicy != "always" {
		t.Errorf("foreign: %+v", got)
	}
	if got := byID[exited]; got.Running || got.PID != 0 || len(byID) != 3 {
		t.Errorf("exited: %+v of %d", got, len(byID))
	}

	for range 2 { // a container that does not run is fine
		if err := c.Stop(t.Context(), sandbox, 1500*time.Millisecond); err != nil {
			t.Error(err)
		}
	}
	if err := c.Stop(t.Context(), "0123456789ab", time.Second); err != nil {
		t.Errorf("stop of a container that is not there: %v", err)
	}
	if got := containers(t, c)[sandbox]; got.Running || got.ID == "" {
		t.Errorf("after stop: %+v", got)
	}

	for _, id := range []string{foreign, foreign, exited, "0123456789ab"} { // those that do not run, and none at all, are fine
		if err := c.Kill(t.Context(), id); err != nil {
			t.Error(err)
		}
		engine.Docker("wait", foreign)
	}
	if got := containers(t, c)[foreign]; got.Running || got.ID == "" {
		t.Errorf("after kill: %+v", got)
	}

	stream, err := c.Save(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	found := false
	for reader := tar.NewReader(stream); ; {
		header, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found = found || header.Name == "manifest.json"
	}
	if !found {
		t.Error("no manifest.json in what was saved")
	}
	if _, err := c.Save(t.Context(), "gone:1"); !docker.IsNotFound(err) {
		t.Errorf("save of an image that is not there: %v", err)
	}
}

func containers(t *testing.T, c *docker.Client) map[string]docker.Container {
	t.Helper()
	list, err := c.Containers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]docker.Container{}
	for _, container := range list {
		byID[container.ID] = container
	}
	return byID
}
