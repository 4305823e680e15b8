package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

// someOverlays is a regular expression for the names of the layouts that are wanted, and "refusals"; `make overlays` asks for all.
const someOverlays = "KUBECTL_RUNTIME_OVERLAYS"

// layout is a node with a history: the overlays that lie on it together, and what has to hold there.
type layout struct {
	name string
	// profile is the only one that has it; empty for all.
	profile string
	// overlays are folders of overlays/; of NAME.PROFILE folders the profile's is taken by NAME.
	overlays []string
	// prepare goes on where files before the boot are not enough. The node is on Docker.
	prepare func(t *testing.T, n *dressed)
	checks  []check
	// between comes on containerd, before the rollback.
	between func(t *testing.T, n *dressed)
}

// check is what has to hold on Docker as on containerd.
type check struct {
	name string
	run  func(t *testing.T, n *dressed, on runtime)
}

// runtime is the one that a node is on.
type runtime string

const (
	onDocker     runtime = "docker"
	onContainerd runtime = "containerd"
)

// registries is what most nodes of companies have of this kind; it is part of every run of the end-to-end tests.
func registries() layout {
	return layout{
		name:     "registries",
		overlays: []string{"mirror", "private-ca", "proxy", "runtime-wrapper", "log-opts", "default-ulimits", "kubelet-default"},
		checks: []check{
			{"a mirror of Docker Hub serves pulls", mirrorServes},
			{"a registry with TLS of one's own and a password", privateRegistry},
			{"the proxy serves pulls", proxyServes},
			{"the wrapper runs containers", wrapperRuns},
			{"logs are rotated", logsRotate},
			{"open files are limited", openFiles(8192, 16384)},
			{"the kubelet's flags", kubeletFlags("overlay=kubelet-default", "--v=2")},
			{"low ports and ICMP are everyone's", unprivilegedNetwork},
		},
		between: directoryAtSocket,
	}
}

// otherLayouts are those of `make overlays` alone.
func otherLayouts() []layout {
	return []layout{
		{
			name:     "drivers",
			overlays: []string{"cgroupfs", "live-restore", "data-root", "disabled-plugins"},
			checks: []check{
				{"cgroupfs", cgroupfs},
				{"no container of Docker lives on", liveRestore},
				{"Docker's data elsewhere", dataRoot("/srv/docker")},
				{"CRI is enabled", criEnabled},
			},
		},
		{
			name:     "by-hand",
			overlays: []string{"docker-flags", "kubelet-execstart", "own-config"},
			checks: []check{
				{"a registry with plain HTTP", plainRegistry},
				{"open files are limited", openFiles(9000, 18000)},
				{"Docker's data elsewhere", dataRoot("/srv/docker-flags")},
				{"the kubelet's flags", kubeletFlags("overlay=execstart", "--v=2", "--max-pods=77", "--config=/var/lib/kubelet/config.yaml")},
				{"what the admin told containerd", ownConfig},
			},
		},
		{
			name:     "distribution",
			overlays: []string{"kubespray", "docker-link"},
			prepare:  privateSandbox,
			checks: []check{
				{"the kubelet's flags", kubeletFlags("overlay=kubespray", "--v=2", "--config=/etc/kubernetes/kubelet-config.yaml")},
				{"Docker's data behind a link", dataRoot("/srv/linked")},
				{"the private sandbox image", sandboxImage},
			},
			between: reboots,
		},
		linked(),
	}
}

// TestOverlays switches nodes with every layout, on one profile after the other, and back.
func TestOverlays(t *testing.T) {
	if os.Getenv(someOverlays) == "" {
		t.Skip("SKIPPED: takes half an hour: run `make overlays`; TestDockershim and TestCRIDockerd have the most important layout")
	}
	for _, profile := range []string{lab.Dockershim, lab.CRIDockerd} {
		t.Run(profile, func(t *testing.T) {
			wanted := regexp.MustCompile(os.Getenv(someOverlays))
			layouts := slices.DeleteFunc(append([]layout{registries(), imageStore()}, otherLayouts()...), func(l layout) bool {
				return !wanted.MatchString(l.name) || l.profile != "" && l.profile != profile
			})
			if len(layouts) == 0 && !wanted.MatchString("refusals") {
				t.Skip("SKIPPED: none of the layouts that are wanted is for this profile")
			}
			o := lab.Options{Profile: profile, Nodes: len(layouts) + 1, RegistryAuth: true, Overlays: map[string]string{}}
			for i, l := range layouts {
				o.Overlays[fmt.Sprintf("node-%d", i+1)] = l.compose(t, profile)
			}
			c := upWith(t, o)
			c.deploy(t)
			spare := c.Nodes()[len(layouts)]
			if wanted.MatchString("refusals") {
				t.Run("Refusals", func(t *testing.T) { c.testRefusals(t, spare, profile) })
			}
			w := c.wardrobe(t, spare)
			t.Run("Nodes", func(t *testing.T) {
				for i, l := range layouts {
					node := c.Nodes()[i]
					t.Run(l.name, func(t *testing.T) {
						t.Parallel()
						n := w.dress(t, node, l)
						n.there(t)
						n.back(t)
					})
				}
			})
		})
	}
}

// there switches the node and checks.
func (n *dressed) there(t *testing.T) {
	t.Helper()
	n.holds(t, onDocker)
	r := n.switchNode(t, 0, n.node, "--soak", "0s", "--delete-emptydir-data")
	n.said = r.stdout + r.stderr
	n.onContainerd(t, n.node, false)
	n.holds(t, onContainerd)
}

// back takes it back to Docker and checks again.
func (n *dressed) back(t *testing.T) {
	t.Helper()
	if n.between != nil {
		t.Run("before the rollback", func(t *testing.T) { n.between(t, n) })
	}
	n.rollback(t, n.node, n.files)
	n.round++
	n.holds(t, onDocker)
}

// holds runs the checks side by side.
func (n *dressed) holds(t *testing.T, on runtime) {
	t.Helper()
	t.Run("on "+string(on), func(t *testing.T) {
		for _, x := range n.checks {
			t.Run(x.name, func(t *testing.T) {
				t.Parallel()
				x.run(t, n, on)
			})
		}
	})
}

// compose lays the layout's overlays over each other, for one profile. daemon.json is merged; any other file may come once.
func (l layout) compose(t *testing.T, profile string) string {
	t.Helper()
	root := t.TempDir()
	daemon := map[string]any{}
	for _, name := range l.overlays {
		dir := filepath.Join("overlays", name)
		if _, err := os.Stat(dir); err != nil {
			dir += "." + profile
		}
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || path == dir {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			return place(path, filepath.Join(root, rel), d, daemon)
		})
		if err != nil {
			t.Fatalf("layout %s: %v", l.name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "etc/docker")); err == nil {
		data, err := json.MarshalIndent(daemon, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "etc/docker/daemon.json"), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func place(from, to string, d os.DirEntry, daemon map[string]any) error {
	switch {
	case d.IsDir():
		return os.MkdirAll(to, 0o755)
	case d.Type() == os.ModeSymlink:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if strings.HasSuffix(to, "/etc/docker/daemon.json") {
		more := map[string]any{}
		if err := json.Unmarshal(data, &more); err != nil {
			return err
		}
		return mergeSettings(daemon, more)
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	file, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	return err
}

// mergeSettings unites lists; anything else may not differ.
func mergeSettings(base, more map[string]any) error {
	for key, value := range more {
		have, ok := base[key]
		list, isList := value.([]any)
		switch {
		case !ok:
			base[key] = value
		case isList:
			united := have.([]any)
			for _, item := range list {
				if !contains(united, item) {
					united = append(united, item)
				}
			}
			base[key] = united
		case !reflect.DeepEqual(have, value):
			return fmt.Errorf("two overlays differ in %s", key)
		}
	}
	return nil
}

func contains(list []any, item any) bool {
	for _, have := range list {
		if reflect.DeepEqual(have, item) {
			return true
		}
	}
	return false
}
