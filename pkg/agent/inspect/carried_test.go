package inspect

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
)

func TestSandboxAuthFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	none := filepath.Join(dir, "none")
	ours := write("ours", `{"auths": {"https://r.corp:5000/v1/": {"auth": "dTpw"}}, "credsStore": "x"}`)
	other := write("other", `{"auths": {"quay.io": {"auth": "dTpw"}}}`)
	helper := write("helper", `{"auths": {"r.corp:5000": {}}, "credHelpers": {"r.corp:5000": "ecr-login"}}`)
	junk := write("junk", `{"auths": [`)
	for _, test := range []struct {
		files []string
		image string
		want  string
	}{
		{[]string{none, ours, other}, "r.corp:5000/pause:1", ours},
		{[]string{junk, ours}, "r.corp:5000/pause:1", ours},
		{[]string{other, ours}, "r.corp:5000/pause:1", ""}, // the first file that can be read is the one
		{[]string{helper}, "r.corp:5000/pause:1", ""},
		{[]string{ours}, "r.corp/pause:1", ""},
		{[]string{ours}, "pause:1", ""},
		{nil, "r.corp:5000/pause:1", ""},
	} {
		if got := sandboxAuthFile(test.files, test.image); got != test.want {
			t.Errorf("%q for %s: %q, want %q", test.files, test.image, got, test.want)
		}
	}
	if auth, err := desired.RegistryAuth(ours, "r.corp:5000/pause@sha256:0"); auth != "dTpw" || err != nil {
		t.Errorf("got %q, %v", auth, err)
	}
}

func TestCredentialFiles(t *testing.T) {
	proc := t.TempDir()
	if err := os.Mkdir(filepath.Join(proc, "7"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, "7", "environ"), []byte("PATH=/bin\x00HOME=/root\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"/k/config.json", "/config.json", "/root/.docker/config.json", "/.docker/config.json"}
	if got := credentialFiles(proc, "7", "/k"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := credentialFiles(proc, "8", ""); len(got) != 3 || got[0] != "/var/lib/kubelet/config.json" {
		t.Errorf("without an environment: %q", got)
	}
}
