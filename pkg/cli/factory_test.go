package cli

import "testing"

// TestAgentImage: a release runs the image that was built with it, whatever becomes of the tag.
func TestAgentImage(t *testing.T) {
	for _, test := range []struct{ version, digest, want string }{
		{"dev", "sha256:12", ""},
		{"v1.2.3", "", AgentRepository + ":v1.2.3"},
		{"v1.2.3", "sha256:12", AgentRepository + ":v1.2.3@sha256:12"},
	} {
		f := &Factory{Version: test.version, AgentDigest: test.digest}
		if got := f.AgentImage(); got != test.want {
			t.Errorf("%s, %s: got %q, want %q", test.version, test.digest, got, test.want)
		}
	}
}
