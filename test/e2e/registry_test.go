package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// registryPods are pods of node-1 whose images come from the lab's registry, by all ways to name one.
var registryPods = []struct{ name, policy, ref string }{
	{"tag", "IfNotPresent", "REPO:TAG"},
	{"digest", "IfNotPresent", "REPO@DIGEST"},
	{"tag-digest", "IfNotPresent", "REPO:TAG@DIGEST"},
	{"tag-never", "Never", "REPO:TAG"},
	{"digest-never", "Never", "REPO@DIGEST"},
	{"tag-digest-never", "Never", "REPO:TAG@DIGEST"},
}

const registryPod = `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: pulled}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node-1}
      terminationGracePeriodSeconds: 1
      containers:
        - {name: it, image: "IMAGE", imagePullPolicy: POLICY, command: [/bin/busybox, sleep, "100000"]}
`

// registryUse is what the test of pulls remembers from before the switch.
type registryUse struct {
	repo, digest string
	// seen is how long the access log was.
	seen int64
}

// pullOnDocker has node-1's Docker pull an image for pods, by tag and by digest, so that it has a RepoDigest.
func (c *cluster) pullOnDocker(t *testing.T) registryUse {
	t.Helper()
	registry := c.Registries()[0]
	image, err := c.PushImage(t.Context(), "node-2", "lab.local/busybox:1")
	if err != nil {
		t.Fatal(err)
	}
	name, tag, _ := strings.Cut(image, ":")
	u := registryUse{repo: registry.Address + "/" + name}
	ref := u.repo + ":" + tag
	c.exec(t, "node-1", "docker pull -q "+ref)
	for digest := range strings.FieldsSeq(c.exec(t, "node-1", "docker image inspect -f '{{join .RepoDigests \" \"}}' "+ref)) {
		if rest, ok := strings.CutPrefix(digest, u.repo+"@"); ok {
			u.digest = rest
		}
	}
	if u.digest == "" {
		t.Fatalf("Docker has no digest for %s", ref)
	}
	if len(c.pulls(t, 0)) == 0 {
		t.Fatal("the registry's log shows no pull of node-1: it would show none later, either")
	}
	manifest := "apiVersion: v1\nkind: Namespace\nmetadata: {name: pulled}\n"
	for _, pod := range registryPods {
		ref := strings.NewReplacer("REPO", u.repo, "TAG", tag, "DIGEST", u.digest).Replace(pod.ref)
		manifest += strings.NewReplacer("NAME", pod.name, "IMAGE", ref, "POLICY", pod.policy).Replace(registryPod)
	}
	path := filepath.Join(t.TempDir(), "pulled.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "apply", "-f", path)
	for _, pod := range registryPods {
		c.kubectl(t, "-n", "pulled", "rollout", "status", "deployment/"+pod.name, "--timeout", "2m")
	}
	u.seen = c.logSize(t)
	return u
}

func (c *cluster) logSize(t *testing.T) int64 {
	t.Helper()
	info, err := os.Stat(c.Registries()[0].AccessLog)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// pulls are the requests for manifests and blobs that node-1 sent to the registry since the log was that long.
func (c *cluster) pulls(t *testing.T, since int64) []string {
	t.Helper()
	data, err := os.ReadFile(c.Registries()[0].AccessLog)
	if err != nil {
		t.Fatal(err)
	}
	var requests []string
	for line := range strings.Lines(string(data[since:])) {
		if strings.HasPrefix(line, c.NodeIP("node-1")+" ") && (strings.Contains(line, "/manifests/") || strings.Contains(line, "/blobs/")) {
			requests = append(requests, strings.TrimSpace(line))
		}
	}
	return requests
}

// pulledNothing checks that the pods run on containerd, and that node-1 asked the registry for nothing since, but at most once whether it has a manifest.
func (c *cluster) pulledNothing(t *testing.T, u registryUse) {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				ContainerStatuses []struct{ ContainerID, ImageID string }
			}
		}
	}
	eventually(t, 2*time.Minute, func() string {
		if err := json.Unmarshal([]byte(c.kubectl(t, "-n", "pulled", "get", "pods", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		var on []string
		for _, pod := range list.Items {
			for _, status := range pod.Status.ContainerStatuses {
				if strings.HasPrefix(status.ContainerID, "containerd://") {
					on = append(on, pod.Metadata.Name)
				}
			}
		}
		if len(on) != len(registryPods) {
			return "only these run on containerd: " + strings.Join(on, ", ")
		}
		return ""
	})
	requests := c.pulls(t, u.seen)
	asksOnly := func(request string) bool {
		return strings.Contains(request, `"HEAD /v2/`) && strings.Contains(request, "/manifests/")
	}
	if len(requests) > 1 || len(requests) == 1 && !asksOnly(requests[0]) {
		t.Errorf("node-1 asked the registry for more than whether it has one manifest:\n%s", strings.Join(requests, "\n"))
	}
}
