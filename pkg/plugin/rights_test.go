package plugin

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/access"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
	"github.com/kubectl-runtime/kubectl-runtime/test/rights"
)

// TestOneRightLess takes away one right of a command's role after the other: the command names what is missing, whatever it then does without it, and
// changes nothing where it needs that.
func TestOneRightLess(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, apiserver.Version())
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: nodejob.Namespace, Labels: nodejob.Labels()}}
	if _, err := s.Client().CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	h := hollow.New(t, s, "guarded")
	s.CreateNodes(t, apiserver.Node("other", hollow.DockerVersion, "v1.23.17"))
	switchPod(t, s, "guarded", "claims", func(pod *corev1.Pod) {
		pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
	})
	commands := map[string][]string{
		"status": {"status"}, "plan": {"plan", "--api-only", "--force"}, "plan-hosts": {"plan", "guarded", "--force", "--image=registry.example/agent:1"},
		"switch": {"switch", "guarded", "--dry-run"}, "rollback": {"rollback", "guarded", "--dry-run"}, "uninstall": {"uninstall", "--dry-run"},
	}
	for _, role := range access.Roles() {
		if commands[role.Command] == nil { // rollout, whose verbs are commands of their own
			continue
		}
		t.Run(role.Command, func(t *testing.T) {
			user := rights.NewUser(t, s, role)
			config := "--kubeconfig=" + apiserver.Kubeconfig(t, user.Config)
			for _, p := range rights.All(role) {
				user.Without(p)
				args := slices.Concat(commands[role.Command], []string{config})
				switch p { // what only these forms of the command ask for
				case access.Permission{Verb: "get", Resource: "nodes"}:
					if !slices.Contains(args, "guarded") {
						args = slices.Insert(args, 1, "guarded")
					}
				case access.Permission{Verb: "watch", Resource: "nodes"}:
					if role.Command == "status" {
						args = append(args, "--watch")
					}
				}
				phases := len(h.Phases())
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				r := call(ctx, args...)
				cancel()
				said := strings.Join(strings.Fields(r.out+r.errOut), " ") // a plan's lines are wrapped
				needed := slices.Contains(role.Needed, p)
				if !namesRight(said, p) || needed && r.code == 0 {
					t.Errorf("%s without %q: exit %d: %.1500s", strings.Join(args[:len(args)-1], " "), p, r.code, said)
				}
				if needed && len(h.Phases()) > phases {
					t.Errorf("without %q the host was asked for %s", p, h.Phases())
				}
			}
		})
	}
	for _, name := range []string{"guarded", "other"} {
		node, err := s.Client().CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || node.Spec.Unschedulable || nodestate.Read(node).State != nodestate.StateNone {
			t.Errorf("node %s was changed: %+v, %v", name, nodestate.Read(node), err)
		}
	}
}

// namesRight reports whether a text names a right that is missing: in the words of RBAC, or of a plan.
func namesRight(said string, p access.Permission) bool {
	words := map[string]string{
		"poddisruptionbudgets": "PodDisruptionBudgets", "persistentvolumes": "PersistentVolumes and their claims",
		"persistentvolumeclaims": "PersistentVolumes and their claims", "cronjobs": "CronJobs",
	}[p.Resource]
	lacking := "you lack permissions: " + p.String()
	return strings.Contains(said, lacking+" hint: ") || strings.Contains(said, lacking+"; ") ||
		strings.Contains(said, `a role with "`+p.Verb+`" on "`+p.Resource+`" is needed`) ||
		words != "" && p.Verb == "list" && strings.Contains(said, "You may not list "+words)
}
