package kubelet

import (
	"net/url"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// setupWith is a kubelet with one file of each kind.
func setupWith(unit, env, config string) Setup {
	return Setup{
		Version: version.Version{Major: 1, Minor: 34, Text: "v1.34.4"}, Args: []string{"/usr/bin/kubelet", "--config=/c"}, UnitFiles: []string{"/etc/systemd/system/u"},
		Read:       reader(map[string]string{"/etc/systemd/system/u": unit, "/e": env, "/c": config}),
		LogMaxSize: 1000, LogMaxFiles: 3,
	}
}

const plainUnit = "[Service]\nEnvironmentFile=-/e\nExecStart=/usr/bin/kubelet --config=/c $A\n"

// readAll reads what there is, as the agent does.
func readAll(s Setup) {
	_, _ = s.Endpoint()
	_, _ = s.CgroupDriver()
	_, _ = s.HealthzURL()
	if svc, err := loadService(s.Read, s.UnitFiles); err == nil {
		s.Args = svc.args()
	}
	_, _ = s.Plan(newEndpoint)
}

// TestOddFiles: whatever lies where a kubelet's file is looked for, the agent goes on, or refuses.
func TestOddFiles(t *testing.T) {
	for kind, try := range map[string]func(data string){
		"unit":       func(data string) { readAll(setupWith(data, "", "")) },
		"ExecStart":  func(data string) { readAll(setupWith("[Service]\nExecStart=/usr/bin/kubelet "+data, "", "")) },
		"env":        func(data string) { readAll(setupWith(plainUnit, data, "")) },
		"config":     func(data string) { readAll(setupWith(plainUnit, "", data)) },
		"kubeconfig": func(data string) { _, _ = NewAPI(reader(map[string]string{"/k": data}), "/k") },
		"version":    func(data string) { _, _ = ParseVersion(data) },
	} {
		t.Run(kind, func(t *testing.T) { agenttest.TryOddFiles(t, func(data []byte) { try(string(data)) }) })
	}
}

// FuzzService: whatever unit and environment file hold, what is read of them can be read again, and each word's place is in its file.
func FuzzService(f *testing.F) {
	f.Add(plainUnit, "A=--v=2\n")
	f.Add("\ufeff[Service]\nExecStart=-/usr/bin/kubelet \"--x=a b\" ${A}c $B \\\n # no\n  --y\nEnvironment=A=1 \"B=--z 2\"\n", "")
	f.Add("[Service]\nExecStart=@/k arg0 %i\nExecStart=\nExecStart=:/k $A\nEnvironment=\n", "A='--v=2 --w'\nA=\"x\\\n\"")
	f.Fuzz(func(t *testing.T, unit, env string) {
		s := setupWith(unit, env, "")
		svc, err := loadService(s.Read, s.UnitFiles)
		if err != nil {
			return
		}
		if len(svc.args()) > 0 {
			if difference, ok := svc.matches(svc.args()); !ok {
				t.Fatalf("it does not match itself: %s", difference)
			}
		}
		readAll(s)
	})
}

// FuzzConfig: of whatever a KubeletConfiguration holds, the URL that the agent asks is one.
func FuzzConfig(f *testing.F) {
	f.Add("kind: KubeletConfiguration\ncgroupDriver: systemd\nhealthzPort: 1\nhealthzBindAddress: '::'\ncontainerLogMaxSize: 10Mi\n")
	f.Add("\ufeff{\"containerRuntimeEndpoint\": \"/run/x.sock\", \"healthzPort\": 0}")
	f.Add("a: &a [*a]\n---\nhealthzBindAddress: \"\\x00 /\"\n")
	f.Fuzz(func(t *testing.T, config string) {
		s := setupWith(plainUnit, "", config)
		readAll(s)
		address, err := s.HealthzURL()
		if err != nil || address == "" {
			return
		}
		if _, err := url.Parse(address); err != nil {
			t.Fatalf("%q became %q: %v", config, address, err)
		}
	})
}

// FuzzKubeconfig: an API that was made has a server and something to show to it.
func FuzzKubeconfig(f *testing.F) {
	f.Add("current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nclusters: [{name: k, cluster: {server: 'https://x:6443', certificate-authority-data: YQ==}}]\nusers: [{name: u, user: {token: t}}]\n")
	f.Add("current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nusers: [{name: u, user: {client-certificate: pem, client-key: pem}}]\n")
	f.Fuzz(func(t *testing.T, data string) {
		api, err := NewAPI(reader(map[string]string{"/d/k": data, "/d/pem": data}), "/d/k")
		if err == nil && api.server == "" {
			t.Fatalf("no server in %q", data)
		}
	})
}

func FuzzParseKubeletVersion(f *testing.F) {
	for _, seed := range []string{"Kubernetes v1.23.17\n", "v1.34.4+k3s1", "\ufeffKubernetes v1.", "Kubernetes v99999999999999999999.1.1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := ParseVersion(text); err == nil && v.Minor < 0 {
			t.Fatalf("%q became %+v", text, v)
		}
	})
}
