package containerd_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
)

// TestRenderKeepsComments: each comment is there once, before what it was at, whatever became of that.
func TestRenderKeepsComments(t *testing.T) {
	const cri = "[plugins.'io.containerd.grpc.v1.cri']\n"
	const handler = `
[plugins.'io.containerd.grpc.v1.cri'.containerd]
default_runtime_name = 'runc'

[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes]
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
`
	for _, test := range []struct{ name, existing, want string }{
		{
			"of a file of version 2", `# Company policy 7

# where the large disk is
root = "/srv/containerd" # asked for by ops
version = 2
# mirrors: see the wiki
[plugins."io.containerd.grpc.v1.cri".registry]
  # old way
  config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.grpc.v1.cri"]
  max_container_log_line_size = 4096 # "long" lines = bad
# end
`, `# Company policy 7

# where the large disk is
# asked for by ops
root = '/srv/containerd'
version = 2

[plugins]
` + cri + `# "long" lines = bad
max_container_log_line_size = 4096

# mirrors: see the wiki
[plugins.'io.containerd.grpc.v1.cri'.registry]
# old way
config_path = '/etc/containerd/certs.d'

# end
`,
		},
		{
			"of Docker's package", "#   Copyright\n\ndisabled_plugins = [\n  # not needed\n  \"cri\"]\n\n#root = \"/x\"\n#[grpc]\n",
			"#   Copyright\n# not needed\n\nversion = 2\n\n[plugins]\n" + cri + "[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'\n\n#root = \"/x\"\n#[grpc]\n",
		},
		{
			"of version 1", "[plugins.cri]\n# numbers\nstream_server_port = \"1\" # one\n# gone\nsystemd_cgroup = false\n",
			"version = 2\n\n[plugins]\n# gone\n" + cri + "# numbers\n# one\nstream_server_port = '1'\n\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'\n",
		},
		{
			"of version 3", "version = 3\n[plugins.'io.containerd.cri.v1.images']\n# two\nmax_concurrent_downloads = 2\n",
			"version = 2\n\n[plugins]\n" + cri + "# two\nmax_concurrent_downloads = 2\n\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'\n",
		},
		{"nothing else, with a carriage return", "# only\r\n# this\n", "# only\n# this\n\nversion = 2\n\n[plugins]\n" + cri + "[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d'\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := containerd.Render([]byte(test.existing), containerd.Settings{})
			if err != nil {
				t.Fatal(err)
			}
			_, text, _ := strings.Cut(string(got), "so are its comments.\n")
			text = strings.Replace(text, handler, "", 1) // every file gets it
			if diff := cmp.Diff(test.want, text); diff != "" {
				t.Errorf("-want +got\n%s\n%s", diff, got)
			}
			if again, err := containerd.Render(got, containerd.Settings{}); err != nil || string(again) != string(got) {
				t.Errorf("rendering the output again changes it (%v):\n%s", err, cmp.Diff(string(got), string(again)))
			}
		})
	}
}

// TestRenderKeepsCommentsWhereSettingsMove: version 4 has other tables than version 2.
func TestRenderKeepsCommentsWhereSettingsMove(t *testing.T) {
	const existing = `version = 2
[grpc]
# the socket
address = "/x.sock"
[plugins."io.containerd.grpc.v1.cri"]
# pause
sandbox_image = "pause:1"
# streaming
stream_server_port = "1"
# long lines
max_container_log_line_size = 1
[plugins."io.containerd.grpc.v1.cri".cni]
# plugins
bin_dir = "/b"
[plugins."io.containerd.grpc.v1.cri".containerd]
# snapshots
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
# sandboxes
sandbox_mode = "podsandbox"
`
	got, err := containerd.Render([]byte(existing), containerd.Settings{Release: parseRelease(t, "2.4.2")})
	if err != nil {
		t.Fatal(err)
	}
	for comment, setting := range map[string]string{
		"the socket": "address = '/x.sock'", "pause": "sandbox = 'pause:1'", "streaming": "stream_server_port = '1'", "long lines": "max_container_log_line_size = 1",
		"plugins": "bin_dirs = ['/b']", "snapshots": "snapshotter = 'native'", "sandboxes": "sandboxer = 'podsandbox'",
	} {
		if !strings.Contains(string(got), "# "+comment+"\n"+setting+"\n") {
			t.Errorf("%q is not at %q", comment, setting)
		}
	}
	if t.Failed() {
		t.Logf("%s", got)
	}
}
