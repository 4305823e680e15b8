package cri_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/images"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
)

const subnet = "10.253.91"

// node is a containerd with runc, CNI and the test image.
type node struct {
	*cri.Client
	dir    string
	leases string
}

func start(t *testing.T, release agenttest.Release, edit ...func(*containerd.Settings)) node {
	t.Helper()
	runc, plugins := agenttest.Runc(t), agenttest.CNIPlugins(t)
	settings := containerd.Settings{
		CgroupDriver: "cgroupfs", SandboxImage: "test/pause:1", Snapshotter: "native", CNIBinDirs: plugins, CNIConfDir: "DIR/net.d",
		RestrictOOMScoreAdj: true, // test machines may lack CAP_SYS_RESOURCE
	}
	for _, edit := range edit {
		edit(&settings)
	}
	config, err := containerd.Render([]byte(agenttest.Isolated), settings)
	if err != nil {
		t.Fatal(err)
	}
	daemon := agenttest.Start(t, release, string(config), runc)
	n := node{dir: daemon.Dir, leases: filepath.Join(daemon.Dir, "leases")}
	network := fmt.Sprintf(`{"cniVersion":"0.3.1","name":"test","plugins":[{"type":"ptp","ipMasq":false,"ipam":
		{"type":"host-local","subnet":"%s.0/24","dataDir":%q}}]}`, subnet, n.leases)
	if err := os.MkdirAll(filepath.Join(daemon.Dir, "net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(daemon.Dir, "net.d/10-test.conflist"), []byte(network), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if n.Client, err = cri.Dial(ctx, daemon.Address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })

	c, err := containerd.Dial(daemon.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	docker := &agenttest.Docker{}
	docker.Add(t, agenttest.Legacy, []string{"test/pause:1", "test/agent:1"}, nil, map[string][]byte{"program": agenttest.Program(t)})
	if _, err := images.Import(t.Context(), docker, c, []string{"test/pause:1"}, nil, images.WithSnapshotter("native")); err != nil {
		t.Fatal(err)
	}
	n.waitFor(t, "image and network", func() bool {
		found, err := n.HasImage(t.Context(), "test/agent:1")
		if err != nil {
			t.Fatal(err)
		}
		report, err := n.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return found && report.Ready()
	})
	return n
}

func (n node) waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (n node) options() cri.SmokeOptions {
	return cri.SmokeOptions{
		SandboxImage: "test/pause:1", Image: "test/agent:1", CgroupDriver: "cgroupfs", CgroupParent: "/kubectl-runtime-cri-test",
		Command: []string{"/program", "sleep"}, Exec: []string{"/program", "version"},
		Pod:    cri.Pod{Namespace: "kubectl-runtime", Name: "job", UID: "uid"},
		LogDir: filepath.Join(n.dir, "logs"), LeaseDir: n.leases,
	}
}

// expectNothingLeft looks for what a sandbox leaves when it is not removed.
func (n node) expectNothingLeft(t *testing.T) {
	t.Helper()
	sandboxes, err := n.Sandboxes(t.Context())
	if err != nil || len(sandboxes) != 0 {
		t.Errorf("sandboxes left: %v, %v", sandboxes, err)
	}
	if leases, _ := filepath.Glob(filepath.Join(n.leases, "test", subnet+".*")); len(leases) != 0 {
		t.Errorf("leases left: %v", leases)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "logs")); err == nil {
		t.Error("the log directory is left")
	}
	if groups, _ := filepath.Glob("/sys/fs/cgroup/*/kubectl-runtime-cri-test"); len(groups) != 0 {
		t.Errorf("cgroups left: %v", groups)
	}
}

func TestCheck(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := start(t, release)
			report, err := n.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			driver := map[string]string{"1.6": "", "2.4": "cgroupfs"}[release.Name]
			if report.RuntimeName != "containerd" || !strings.HasPrefix(strings.TrimPrefix(report.RuntimeVersion, "v"), release.Name) ||
				report.CgroupDriver != driver || !report.Ready() || report.Message != "" {
				t.Errorf("got %+v", report)
			}
			if err := os.Remove(filepath.Join(n.dir, "net.d/10-test.conflist")); err != nil {
				t.Fatal(err)
			}
			n.waitFor(t, "unready network", func() bool {
				report, err = n.Check(t.Context())
				return err == nil && !report.NetworkReady
			})
			if report.Ready() || !strings.Contains(report.Message, "NetworkReady is false") {
				t.Errorf("without a CNI configuration: %+v", report)
			}
		})
	}
}

func TestSmoke(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := start(t, release)
			// Runtimes may know the Job's own pod when the smoke test runs, and it is run more than once.
			for range 2 {
				var stages []string
				o := n.options()
				o.Stage = func(stage string) { stages = append(stages, stage) }
				o.Images = []string{"test/pause:1", "test/agent:1"}
				if err := n.Smoke(t.Context(), o); err != nil {
					t.Fatalf("after %q: %v", stages, err)
				}
				if len(stages) != 9 {
					t.Errorf("stages: %q", stages)
				}
				n.expectNothingLeft(t)
			}
			o := n.options()
			o.HostNetwork = true
			if err := n.Smoke(t.Context(), o); err != nil {
				t.Errorf("host network: %v", err)
			}
			n.expectNothingLeft(t)
		})
	}
}

// A handler that is called as its shim, as Docker's default runtime may be, runs pods that name none; so does one with the shim's path.
func TestSmokeOnAnotherShim(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		for name, kind := range map[string]string{"name": "io.containerd.lab.v1", "path": "DIR/containerd-shim-lab-v1"} {
			t.Run(release.Name+"/"+name, func(t *testing.T) {
				dir := t.TempDir()
				said := filepath.Join(dir, "said")
				shim := "#!/bin/sh\necho \"$*\" >>" + said + "\nexec " + filepath.Join(release.Dir, "containerd-shim-runc-v2") + " \"$@\"\n"
				if err := os.WriteFile(filepath.Join(dir, "containerd-shim-lab-v1"), []byte(shim), 0o755); err != nil {
					t.Fatal(err)
				}
				release := release
				release.Dir = dir + ":" + release.Dir
				kind := strings.ReplaceAll(kind, "DIR", dir)
				n := start(t, release, func(s *containerd.Settings) {
					s.Runtimes, s.DefaultRuntime = []containerd.Runtime{{Name: "io.containerd.lab.v1", Type: kind}}, "io.containerd.lab.v1"
				})
				if err := n.Smoke(t.Context(), n.options()); err != nil {
					t.Fatal(err)
				}
				if out, err := os.ReadFile(said); err != nil || !strings.Contains(string(out), "start") {
					t.Errorf("the shim was asked %q, %v", out, err)
				}
				n.expectNothingLeft(t)
			})
		}
	}
}

func TestSmokeNamesWhatFailedAndRemovesAll(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := start(t, release)
			for name, c := range map[string]struct {
				change func(*cri.SmokeOptions)
				want   string
			}{
				"no sandbox image":                  {func(o *cri.SmokeOptions) { o.SandboxImage = "gone:1" }, "ImageStatus: the runtime does not have gone:1"},
				"no test image":                     {func(o *cri.SmokeOptions) { o.Image = "gone:2" }, "ImageStatus: the runtime does not have gone:2"},
				"no image to make a container from": {func(o *cri.SmokeOptions) { o.Images = []string{"test/agent:1", "gone:3"} }, "CreateContainer from image gone:3: "},
				"command is not there":              {func(o *cri.SmokeOptions) { o.Command = []string{"/gone"} }, "StartContainer: "},
				"container ends":                    {func(o *cri.SmokeOptions) { o.Command = []string{"/program", "version"} }, ""},
				"exec fails":                        {func(o *cri.SmokeOptions) { o.Exec = []string{"/program", "fail"} }, "ExecSync: exit code 3: failing"},
				"exec does not exist":               {func(o *cri.SmokeOptions) { o.Exec = []string{"/gone"} }, "ExecSync: "},
				"log not in directory":              {func(o *cri.SmokeOptions) { o.LogDir = "/proc/nowhere" }, "make log directory: "},
			} {
				t.Run(name, func(t *testing.T) {
					o := n.options()
					c.change(&o)
					if err := n.Smoke(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
						t.Errorf("got %v, want %q", err, c.want)
					}
					n.expectNothingLeft(t)
				})
			}
			t.Run("caller gives up", func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				o := n.options()
				o.Stage = func(stage string) {
					if strings.Contains(stage, "statistics") {
						cancel()
					}
				}
				if err := n.Smoke(ctx, o); err == nil || !strings.Contains(err.Error(), "ContainerStats: ") {
					t.Errorf("got %v", err)
				}
				n.expectNothingLeft(t)
			})
			t.Run("broken network", func(t *testing.T) {
				file := filepath.Join(n.dir, "net.d/10-test.conflist")
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				broken := strings.Replace(string(data), "host-local", "gone-local", 1)
				if err := os.WriteFile(file, []byte(broken), 0o600); err != nil {
					t.Fatal(err)
				}
				n.waitFor(t, "error", func() bool {
					err := n.Smoke(t.Context(), n.options())
					return err != nil && strings.Contains(err.Error(), "RunPodSandbox: ") && strings.Contains(err.Error(), "gone-local")
				})
				if err := os.WriteFile(file, data, 0o600); err != nil {
					t.Fatal(err)
				}
				n.waitFor(t, "success", func() bool { return n.Smoke(t.Context(), n.options()) == nil })
				n.expectNothingLeft(t)
			})
		})
	}
}

func TestStopAll(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		t.Run(release.Name, func(t *testing.T) {
			n := start(t, release)
			stopped := false
			ctx, giveUp := context.WithCancel(t.Context())
			o := n.options()
			o.Stage = func(stage string) {
				if !strings.Contains(stage, "statistics") {
					return
				}
				sandboxes, err := n.Sandboxes(t.Context())
				if err != nil || len(sandboxes) != 1 || !sandboxes[0].Ready || sandboxes[0].Pod != o.Pod {
					t.Errorf("while it runs: %+v, %v", sandboxes, err)
				}
				if err := n.StopAll(t.Context(), time.Second, time.Minute); err != nil {
					t.Error(err)
				}
				sandboxes, err = n.Sandboxes(t.Context())
				stopped = err == nil && len(sandboxes) == 1 && !sandboxes[0].Ready
				if leases, _ := filepath.Glob(filepath.Join(n.leases, "test", subnet+".*")); len(leases) != 0 {
					t.Errorf("leases left: %v", leases)
				}
				giveUp()
			}
			_ = n.Smoke(ctx, o) // its container is gone half way
			if !stopped {
				t.Error("the sandbox was not stopped")
			}
			n.expectNothingLeft(t)
			if err := n.StopAll(t.Context(), time.Second, time.Minute); err != nil {
				t.Errorf("with nothing to stop: %v", err)
			}
		})
	}
}

func TestDialSaysThatNobodyListens(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := cri.Dial(ctx, filepath.Join(t.TempDir(), "gone.sock"))
	if err == nil || !strings.Contains(err.Error(), "gone.sock: Version: ") {
		t.Errorf("got %v", err)
	}
}

// TestSmokeShowsItsProcesses: with a base spec its limits are the container's, and are reported; without one none are set.
func TestSmokeShowsItsProcesses(t *testing.T) {
	for _, release := range agenttest.Releases(t) {
		for name, limits := range map[string][]containerd.Rlimit{"inherited": nil, "set": {{Name: "nofile", Soft: 600, Hard: 700}}} {
			t.Run(release.Name+"/"+name, func(t *testing.T) {
				n := start(t, release, func(s *containerd.Settings) {
					if limits == nil {
						return
					}
					defaults, err := exec.Command(filepath.Join(release.Dir, "ctr"), "oci", "spec").Output()
					if err != nil {
						t.Fatal(err)
					}
					spec, err := containerd.BaseSpec(defaults, limits)
					if err != nil {
						t.Fatal(err)
					}
					s.BaseSpec = filepath.Join(t.TempDir(), "base-spec.json")
					if err := os.WriteFile(s.BaseSpec, spec, 0o600); err != nil {
						t.Fatal(err)
					}
				})
				o := n.options()
				looked := false
				o.Look = func(p cri.Processes) {
					looked = true
					hard := map[int]string{}
					for _, pid := range []int{os.Getpid(), p.Sandbox, p.Container} {
						data, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
						if err != nil {
							t.Error(err)
							return
						}
						_, rest, _ := strings.Cut(string(data), "Max open files")
						hard[pid] = strings.Fields(rest)[1]
					}
					own := hard[os.Getpid()]
					want := map[bool]string{true: own, false: "700"}[limits == nil]
					if hard[p.Sandbox] != own || hard[p.Container] != want || len(p.Rlimits) != len(limits) {
						t.Errorf("%+v: hard limits %v, this test's is %s", p, hard, own)
					}
					if limits != nil && p.Rlimits["RLIMIT_NOFILE"] != (cri.Rlimit{Soft: 600, Hard: 700}) {
						t.Errorf("got the limits %+v", p.Rlimits)
					}
				}
				if err := n.Smoke(t.Context(), o); err != nil || !looked {
					t.Fatal(err, looked)
				}
				n.expectNothingLeft(t)
			})
		}
	}
}
