package desired

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/cri"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
)

// TestLimitsOf reads the limits of a real process.
func TestLimitsOf(t *testing.T) {
	pid := sleepWith(t, "--nofile=1234:2345", "--core=0:unlimited")
	got, err := LimitsOf("/proc", pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []translate.Limit{{Name: "nofile", Soft: 1234, Hard: 2345}, {Name: "core", Soft: 0, Hard: unlimited}} {
		if !slices.Contains(got, want) {
			t.Errorf("%+v is not in %+v", want, got)
		}
	}
	if len(got) != len(podLimits) {
		t.Errorf("got %+v", got)
	}
}

// sleepWith starts a program that sets no limits itself, under prlimit(1).
func sleepWith(t *testing.T, limits ...string) int {
	t.Helper()
	if _, err := exec.LookPath("prlimit"); err != nil {
		t.Skip("no prlimit: install util-linux")
	}
	cmd := exec.CommandContext(t.Context(), "prlimit", append(limits, "sleep", "60")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for { // until it has become sleep
		name, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/comm")
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(name)) == "sleep" {
			return cmd.Process.Pid
		}
	}
}

func TestUnitLimits(t *testing.T) {
	most, err := maxOpenFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, shown string
		want        []translate.Limit
	}{
		{"numbers", "LimitNOFILE=524288\nLimitNOFILESoft=1024\nLimitNPROC=infinity\nLimitNPROCSoft=infinity\n",
			[]translate.Limit{{Name: "nofile", Soft: 1024, Hard: 524288}, {Name: "nproc", Soft: unlimited, Hard: unlimited}}},
		{"infinity is what the kernel allows", "LimitNOFILE=infinity\nLimitNOFILESoft=infinity\n", []translate.Limit{{Name: "nofile", Soft: most, Hard: most}}},
		{"of an old systemd", "LimitNOFILE=18446744073709551615\nLimitCORE=0\n", []translate.Limit{{Name: "nofile", Soft: most, Hard: most}, {Name: "core"}}},
	} {
		h := &node.Host{Systemd: host.Systemd{Run: nodetest.Answers(test.shown)}}
		got, err := unitLimits(t.Context(), h, "x.service", false)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", test.name, diff)
		}
	}
	// systemd itself cannot go above its own limit then.
	own, err := LimitsOf("/proc", 1)
	if err != nil {
		t.Fatal(err)
	}
	h := &node.Host{Systemd: host.Systemd{Run: nodetest.Answers("LimitNPROC=infinity\nLimitNPROCSoft=infinity\n")}}
	got, err := unitLimits(t.Context(), h, "x.service", true)
	want := own[slices.IndexFunc(own, func(l translate.Limit) bool { return l.Name == "nproc" })].Hard
	if err != nil || len(got) != 1 || got[0].Hard != want || got[0].Soft != want {
		t.Errorf("without CAP_SYS_RESOURCE: %+v, %v, want %d", got, err, want)
	}
}

func TestLimitsCarried(t *testing.T) {
	nofile := func(soft, hard int64) translate.Limit { return translate.Limit{Name: "nofile", Soft: soft, Hard: hard} }
	for _, test := range []struct {
		name          string
		ulimits       []translate.Limit
		pod, unit     translate.Limit
		shared, lacks bool
		want          []translate.Limit
		cannot        bool
	}{
		{name: "the same", pod: nofile(1048576, 1048576), unit: nofile(1048576, 1048576)},
		{name: "Docker's is higher", pod: nofile(1048576, 1048576), unit: nofile(1024, 524288), want: []translate.Limit{nofile(1048576, 1048576)}},
		{name: "Docker's is lower", pod: nofile(1024, 4096), unit: nofile(1073741816, 1073741816), want: []translate.Limit{nofile(1024, 4096)}},
		{name: "the same, of the same containerd", pod: nofile(524288, 524288), unit: nofile(1024, 524288), shared: true},
		{name: "the same, of another containerd, which may pass on what it raised", pod: nofile(1024, 524288), unit: nofile(1024, 524288), want: []translate.Limit{nofile(1024, 524288)}},
		{name: "the unit was edited since", pod: nofile(1048576, 1048576), unit: nofile(4096, 4096), shared: true, want: []translate.Limit{nofile(1048576, 1048576)}},
		{name: "default-ulimits say it", ulimits: []translate.Limit{nofile(5, 6)}, pod: nofile(5, 6), unit: nofile(7, 8), want: []translate.Limit{nofile(5, 6)}},
		{name: "lower can be set always", pod: nofile(5, 6), unit: nofile(7, 8), lacks: true, want: []translate.Limit{nofile(5, 6)}},
		{name: "higher cannot be set", pod: nofile(9, 9), unit: nofile(7, 8), lacks: true, cannot: true},
		{name: "another limit", pod: translate.Limit{Name: "core", Hard: unlimited}, unit: translate.Limit{Name: "core"}, shared: true, want: []translate.Limit{{Name: "core", Hard: unlimited}}},
		{name: "not known of the unit", pod: nofile(9, 9), unit: translate.Limit{Name: "core"}},
	} {
		carried := LimitsCarried{Limits: test.ulimits}
		carried.add([]translate.Limit{test.pod}, []translate.Limit{test.unit}, test.shared, test.lacks)
		if diff := cmp.Diff(test.want, carried.Limits); diff != "" || len(carried.Cannot) > 0 != test.cannot {
			t.Errorf("%s: %q, -want +got\n%s", test.name, carried.Cannot, diff)
		}
	}
}

// TestDifferingLimits compares with real processes: one in place of the sandbox's pause program, and one in place of the container's.
func TestDifferingLimits(t *testing.T) {
	sandbox, container := sleepWith(t, "--nofile=1000:5000"), sleepWith(t, "--nofile=5000:5000")
	own, err := LimitsOf("/proc", container)
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(own, func(l translate.Limit) bool { return l.Name == "nofile" })
	for _, test := range []struct {
		name string
		pod  translate.Limit
		set  map[string]cri.Rlimit
		want string
	}{
		{name: "inherited", pod: translate.Limit{Name: "nofile", Soft: 1000, Hard: 5000}},
		{name: "set", pod: translate.Limit{Name: "nofile", Soft: 7, Hard: 5000}, set: map[string]cri.Rlimit{"RLIMIT_NOFILE": {Soft: 7, Hard: 5000}}},
		{name: "soft differs", pod: translate.Limit{Name: "nofile", Soft: 5000, Hard: 5000}, want: "nofile is 5000 in Docker's pods, and 1000:5000 in containerd's"},
		{name: "hard differs", pod: translate.Limit{Name: "nofile", Soft: 1000, Hard: 6000}, want: "nofile is 1000:6000 in Docker's pods, and 1000:5000 in containerd's"},
	} {
		pods := slices.Clone(own)
		pods[at] = test.pod
		got, err := DifferingLimits(pods, cri.Processes{Sandbox: sandbox, Container: container, Rlimits: test.set})
		if err != nil || strings.Join(got, "; ") != test.want {
			t.Errorf("%s: %q, %v, want %q", test.name, got, err, test.want)
		}
	}
}
