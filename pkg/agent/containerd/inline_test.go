package containerd_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
)

func TestInlineHosts(t *testing.T) {
	const config = `version = 2
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://m.corp/v2/hub", "https://registry-1.docker.io"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."r.corp:5000"]
endpoint = ["http://r.corp:5000"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."*"]
endpoint = ["https://any.corp/"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."m.corp".tls]
ca_file = "/ca.crt"
cert_file = "/c.crt"
key_file = "/c.key"
[plugins."io.containerd.grpc.v1.cri".registry.configs."m.corp".auth]
username = "u"
[plugins."io.containerd.grpc.v1.cri".registry.configs."s.corp".tls]
insecure_skip_verify = true
`
	const head = "# Written by kubectl-runtime from containerd's own config, which had this inline.\n"
	const capabilities = "  capabilities = [\"pull\", \"resolve\"]\n"
	want := map[string]string{
		"docker.io": "server = \"https://registry-1.docker.io\"\n\n[host.\"https://m.corp/v2/hub\"]\n" + capabilities +
			"  override_path = true\n  ca = [\"/ca.crt\"]\n  client = [[\"/c.crt\", \"/c.key\"]]\n\n[host.\"https://registry-1.docker.io\"]\n" + capabilities,
		"r.corp:5000": "server = \"https://r.corp:5000\"\n\n[host.\"http://r.corp:5000\"]\n" + capabilities,
		"_default":    "\n[host.\"https://any.corp\"]\n" + capabilities,
		"s.corp":      "server = \"https://s.corp\"\nskip_verify = true\n",
		"m.corp":      "server = \"https://m.corp\"\nca = [\"/ca.crt\"]\nclient = [[\"/c.crt\", \"/c.key\"]]\n",
	}
	hosts, err := containerd.InlineHosts([]byte(config), containerd.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for host, files := range hosts {
		got[host] = strings.TrimPrefix(string(files["hosts.toml"]), head)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	// The same in a file that 1.x imports.
	if imported, err := containerd.InlineHosts([]byte("version = 2\nimports = [\"x\"]\n"), containerd.Settings{Imported: []containerd.Imported{{Data: []byte(config)}}}); err != nil || len(imported) != len(want) {
		t.Errorf("imported: %d hosts, %v", len(imported), err)
	}

	rendered, err := containerd.Render([]byte(config), settings)
	if err != nil {
		t.Fatal(err)
	}
	for text, is := range map[string]bool{"mirrors": false, ".tls]": false, "config_path = '/etc/containerd/certs.d'": true, "username = 'u'": true} {
		if strings.Contains(string(rendered), text) != is {
			t.Errorf("the config has %q: %t\n%s", text, !is, rendered)
		}
	}
	if none, err := containerd.InlineHosts(rendered, containerd.Settings{}); err != nil || len(none) > 0 {
		t.Errorf("twice: %v, %v", none, err)
	}
}

func TestInlineHostsRefuses(t *testing.T) {
	const mirror = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors."
	for name, config := range map[string]string{
		"a name that is a path": mirror + "\"../x\"]\nendpoint = [\"https://m\"]\n",
		"no URL":                mirror + "\"r\"]\nendpoint = [\"m.corp\"]\n",
		"no list":               mirror + "\"r\"]\nendpoint = \"https://m\"\n",
	} {
		var cannot *containerd.CannotKeepError
		if hosts, err := containerd.InlineHosts([]byte(config), containerd.Settings{}); !errors.As(err, &cannot) {
			t.Errorf("%s: %v, %v", name, hosts, err)
		}
		if _, err := containerd.Render([]byte(config), settings); !errors.As(err, &cannot) {
			t.Errorf("%s: rendered, %v", name, err)
		}
	}
}
