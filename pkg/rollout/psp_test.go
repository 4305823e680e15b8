package rollout

import (
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// TestPodSecurityPolicy: a cluster of before 1.25 with PodSecurityPolicy on. The Go API has none any more.
func TestPodSecurityPolicy(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, "1.24", "--enable-admission-plugins=PodSecurityPolicy")
	create := func(text string) {
		t.Helper()
		if err := s.Client().Discovery().RESTClient().Post().AbsPath("/apis/policy/v1beta1/podsecuritypolicies").SetHeader("Content-Type", "application/json").Body([]byte(text)).Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	const head, tail = `{"apiVersion":"policy/v1beta1","kind":"PodSecurityPolicy","metadata":{"name":`,
		`"seLinux":{"rule":"RunAsAny"},"runAsUser":{"rule":"RunAsAny"},"supplementalGroups":{"rule":"RunAsAny"},"fsGroup":{"rule":"RunAsAny"}}}`
	h := newHollow(t, s, "psp-none")
	_, err := newRollout(s, &recorder{}).Switch(t.Context(), "psp-none")
	wantUntouched(t, s, h, err, "PodSecurityPolicy", "no providers available")

	create(head + `"restricted"},"spec":{"volumes":["emptyDir"],` + tail)
	h = newHollow(t, s, "psp-restricted")
	_, err = newRollout(s, &recorder{}).Switch(t.Context(), "psp-restricted")
	wantUntouched(t, s, h, err, "PodSecurityPolicy: unable to admit pod", "hostNetwork")

	create(head + `"privileged"},"spec":{"privileged":true,"allowPrivilegeEscalation":true,"hostNetwork":true,"hostPID":true,` +
		`"hostPorts":[{"min":0,"max":65535}],"volumes":["*"],"allowedCapabilities":["*"],` + tail)
	newHollow(t, s, "psp-privileged")
	report, err := newRollout(s, &recorder{}).Switch(t.Context(), "psp-privileged")
	if err != nil || strings.Contains(strings.Join(report.Warnings, ";"), "canary") {
		t.Errorf("warnings %q, %v", report.Warnings, err)
	}
	nothingLeft(t, s, "psp-privileged")
}
