package plugin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/api/v1alpha1"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/rolloutrecord"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// ask runs a command that needs no image and no answer.
func (f *hollowFleet) ask(args ...string) result {
	f.t.Helper()
	r := call(f.t.Context(), append(args, "--kubeconfig="+apiserver.Kubeconfig(f.t, f.Admin()))...)
	f.t.Logf("%q: exit %d\n%s%s", args, r.code, r.out, r.errOut)
	return r
}

// theRollout is the name of the only rollout.
func (f *hollowFleet) theRollout() string {
	f.t.Helper()
	name := strings.TrimSpace(f.ask("rollout", "list", "-o", "name").out)
	if !strings.HasPrefix(name, "rollout/") || strings.Contains(name, "\n") {
		f.t.Errorf("rollouts: %q", name)
	}
	return name
}

// await waits until a rollout's status begins with a text.
func (f *hollowFleet) await(name, want string) {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		r := f.ask("rollout", "status", name, "--watch=false")
		if strings.Contains(r.out, want) {
			return
		}
		if time.Now().After(deadline) {
			f.t.Errorf("the status does not become %q", want)
			return
		}
	}
}

// TestRolloutPauseAndResume: while a rollout is paused, the node in flight finishes and none starts; then it continues.
func TestRolloutPauseAndResume(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "node-1", "node-2", "node-3")
	paused := make(chan string, 1)
	slow(f.nodes["node-2"], protocol.PhaseCutover, func() {
		name := f.theRollout()
		if r := f.ask("rollout", "pause", name); r.code != 0 || r.out != name+" paused\n" {
			t.Errorf("pause: exit %d, %s", r.code, r.out)
		}
		paused <- name
	})
	go func() {
		name := <-paused
		f.await(name, ` paused: 2 of 3 nodes done, 1 waiting (paused by `)
		if r := f.ask("rollout", "pause", name); r.code != 1 || !strings.Contains(r.errOut, "cannot be paused: it was already paused, by ") {
			t.Errorf("pause again: exit %d", r.code)
		}
		if r := f.ask("rollout", "resume", name); r.code != 0 || r.out != name+" resumed\n" {
			t.Errorf("resume: exit %d, %s", r.code, r.out)
		}
	}()
	r := f.call(t.Context(), "switch", "--all", "--max-unavailable=2")
	if r.code != 0 || len(f.onContainerd()) != 3 || !strings.Contains(r.errOut, "no node starts: paused by ") {
		t.Errorf("exit %d, on containerd %q", r.code, f.onContainerd())
	}
	name := f.theRollout()
	if "rollout/"+r.result.Rollout != name || !strings.Contains(r.errOut, name+" created: `kubectl runtime rollout pause ") {
		t.Errorf("rollout %q is not %q", r.result.Rollout, name)
	}
	if r := f.ask("rollout", "status", name); r.code != 0 || !strings.HasSuffix(r.out, " completed: 3 of 3 nodes done\n") {
		t.Errorf("status: exit %d", r.code)
	}
	for _, verb := range []string{"pause", "resume", "abort"} {
		if r := f.ask("rollout", verb, name); r.code != 1 || !strings.Contains(r.errOut, "it is completed") {
			t.Errorf("%s after the end: exit %d", verb, r.code)
		}
	}
	leases, err := f.Client().CoordinationV1().Leases("kubectl-runtime").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(leases.Items) > 0 {
		t.Errorf("%d leases are left, %v", len(leases.Items), err)
	}
}

// TestRolloutAbort: an aborted rollout ends with the node in flight, and the command that began it says what is left and how to resume it.
func TestRolloutAbort(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "node-1", "node-2", "node-3")
	slow(f.nodes["node-1"], protocol.PhaseCutover, func() {
		name := f.theRollout()
		if r := f.ask("rollout", "abort", name); r.code != 0 || r.out != name+" aborted\n" || !strings.Contains(r.errOut, "nodes in flight that finish: 1\n") {
			t.Errorf("abort: exit %d, %s%s", r.code, r.out, r.errOut)
		}
		if r := f.ask("rollout", "resume", name); r.code != 1 {
			t.Errorf("resume: exit %d", r.code)
		}
	})
	r := f.call(t.Context(), "switch", "--all")
	if want := "node-1: done, node-2: not-begun, node-3: not-begun"; r.code != cli.ExitGeneral || r.results() != want {
		t.Errorf("exit %d, %s", r.code, r.results())
	}
	for _, want := range []string{"error: 2 of the nodes were not started: aborted by ", "hint: `kubectl runtime switch --all=true "} {
		if !strings.Contains(r.errOut, want) {
			t.Errorf("%q is not in:\n%s", want, r.errOut)
		}
	}
	name := f.theRollout()
	status := f.ask("rollout", "status", name)
	if status.code != 1 || !strings.Contains(status.errOut, "` resumes it, as a rollout of another name") || !strings.Contains(status.out, " aborted: 1 of 3 nodes done, 2 waiting (aborted by ") {
		t.Errorf("status: exit %d", status.code)
	}
	if r := f.call(t.Context(), "switch", "--all", "--max-unavailable=2"); r.code != 0 || len(f.onContainerd()) != 3 {
		t.Errorf("again: exit %d, on containerd %q", r.code, f.onContainerd())
	}
	f.noneTwice(2)
	var list v1alpha1.RolloutList
	if err := json.Unmarshal([]byte(f.ask("rollout", "list", "-o", "json").out), &list); err != nil || list.Kind != "RolloutList" || len(list.Items) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if first, second := list.Items[0], list.Items[1]; first.Status.State != "Aborted" || first.Status.Counts.Waiting != 2 || second.Status.State != "Completed" || second.Spec.MaxUnavailable != "2" {
		t.Errorf("%+v", list.Items)
	}
}

// TestRolloutsOfOthers: what the commands say of rollouts that somebody else's process drove, or nobody's.
func TestRolloutsOfOthers(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, apiserver.Version())
	f := &hollowFleet{Server: s, t: t}
	if r := f.ask("rollout", "list"); r.code != 0 || r.out != "" || r.errOut != "No rollouts found\n" {
		t.Errorf("list of nothing: exit %d", r.code)
	}
	if r := f.ask("rollout", "pause", "switch-none1"); r.code != 1 || !strings.Contains(r.errOut, `there is no rollout "switch-none1"`) {
		t.Errorf("no such rollout: exit %d", r.code)
	}
	if r := f.ask("rollout", "abort", "node-1"); r.code != 1 || !strings.Contains(r.errOut, `"node-1" is not the name of a rollout`) {
		t.Errorf("no name: exit %d", r.code)
	}
	api := s.Client().CoreV1()
	if _, err := api.Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kubectl-runtime"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	put := func(name string, data map[string]string, age time.Duration) {
		t.Helper()
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: rolloutrecord.Labels()}, Data: data}
		_, err := api.ConfigMaps("kubectl-runtime").Create(t.Context(), object, metav1.CreateOptions{})
		if err == nil && age > 0 {
			_, err = s.Client().CoordinationV1().Leases("kubectl-runtime").Create(t.Context(), &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Name: "rollout." + name},
				Spec: coordinationv1.LeaseSpec{
					HolderIdentity: ptr.To("bob@desk/1"), LeaseDurationSeconds: ptr.To[int32](60), RenewTime: ptr.To(metav1.NewMicroTime(time.Now().Add(-age))),
				},
			}, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	spec := `{"operation":"switch","selection":["-l","--selector=pool in (a,b)","--token=x"],"flags":["--max-unavailable=2","--server=https://evil","--nothing=1","rm"],"nodes":7,"owner":"bob\u001b[2J@desk"}`
	put("switch-lost1", map[string]string{"spec": spec, "status": `{"counts":{"done":3,"inFlight":1,"waiting":3},"waiting":"x"}`}, time.Hour)
	put("switch-live1", map[string]string{"spec": `{"operation":"switch","selection":["--all=true"],"nodes":9,"owner":"eve@desk"}`, "control": `{"paused":true,"by":"carol"}`}, time.Second)
	put("switch-bad01", map[string]string{"spec": `{`}, 0)
	r := f.ask("rollout", "list")
	for _, want := range []string{"NAME ", "switch-lost1   DriverLost   7       3      0        4      bob\\u001b[2J@desk", "switch-live1   Paused       9       0      0        0      eve@desk"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in the list", want)
		}
	}
	if r.code != 0 || !strings.Contains(r.errOut, "warning: rollout switch-bad01: its spec cannot be read") {
		t.Errorf("list: exit %d, %s", r.code, r.errOut)
	}
	r = f.ask("rollout", "status", "switch-lost1")
	if r.code != 1 || !strings.Contains(r.out, `rollout "switch-lost1" has no driver any more; when it reported last: 3 of 7 nodes done, 1 in flight, 3 waiting`) {
		t.Errorf("status: exit %d", r.code)
	}
	// Of what the record says, only the command's own flags are in the line that people paste.
	if !strings.Contains(r.errOut, "hint: `kubectl runtime switch '--selector=pool in (a,b)' --max-unavailable=2 --kubeconfig=") {
		t.Errorf("the hint is not right: %s", r.errOut)
	}
	if r := f.ask("rollout", "resume", "switch-lost1"); r.code != 1 || !strings.Contains(r.errOut, "its driver does not report any more") || !strings.Contains(r.errOut, "hint: `kubectl runtime switch ") {
		t.Errorf("resume: exit %d", r.code)
	}
	if r := f.ask("rollout", "abort", "switch-lost1"); r.code != 0 {
		t.Errorf("abort: exit %d", r.code)
	}
	if r := f.ask("rollout", "status", "switch-live1", "--timeout=3s"); r.code != cli.ExitTimeout || !strings.Contains(r.errOut, "rollout switch-live1 has not ended after 3s") {
		t.Errorf("status with a timeout: exit %d", r.code)
	}
	for _, format := range []string{"yaml", "json"} {
		if r := f.ask("rollout", "status", "switch-lost1", "-o", format); r.code != 0 || !strings.Contains(r.out, "Aborted") {
			t.Errorf("-o %s: exit %d", format, r.code)
		}
	}
	complete := callAs(t.Context(), "kubectl_complete-runtime", "rollout", "pause", "--kubeconfig", apiserver.Kubeconfig(t, s.Admin()), "switch-l")
	if !strings.HasPrefix(complete.out, "switch-l") || !strings.Contains(complete.out, "switch-lost1\n") || !strings.Contains(complete.out, "switch-live1\n") {
		t.Errorf("completion: %s", complete.out)
	}
	// A namespace that is somebody else's stays, without the records. A driver that is alive keeps all.
	if r := f.ask("uninstall", "--yes"); r.code != cli.ExitRefused || !strings.Contains(r.errOut, "runs are open: rollout switch-live1: eve@desk") && !strings.Contains(r.errOut, "runs are open: rollout switch-live1: bob@desk") {
		t.Errorf("uninstall: exit %d", r.code)
	}
	if err := s.Client().CoordinationV1().Leases("kubectl-runtime").Delete(t.Context(), "rollout.switch-live1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if r := f.ask("uninstall", "--yes"); r.code != 0 || strings.Count(r.out, "configmap/switch-") != 3 {
		t.Errorf("uninstall: exit %d", r.code)
	}
	if left := f.ask("rollout", "list", "-o", "name"); left.out != "" {
		t.Errorf("left: %s", left.out)
	}
}
