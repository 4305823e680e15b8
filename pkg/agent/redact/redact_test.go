package redact

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// forms are how secrets stand in files and logs; %s is the secret.
var forms = []string{
	`{"auths":{"r.example":{"auth":"%s"}}}`,
	`{"auths":{"r.example":{"auth" : "%s", "email":"a@b"}}}`,
	`{"message":"wrote {\"auth\":\"%s\"}"}`,
	`{"identitytoken":"%s"}`,
	`  password: %s`,
	`  token: "%s"`,
	`  password = "%s"`,
	`  auth = '%s'`,
	`REGISTRY_PASSWORD=%s`,
	`Environment="HTTPS_PROXY=http://user:%s@proxy:3128"`,
	`HTTP_PROXY=http://%s@proxy:3128/`,
	`HTTP_PROXY=http://user:p@ss%s@proxy:3128/`,
	`kubelet --bootstrap-token=%s --v=2`,
	`kubelet --token %s --v=2`,
	`["kubelet","--token","%s","--v=2"]`,
	`Authorization: Bearer %s`,
	`authorization: Basic %s`,
	"-----BEGIN RSA PRIVATE KEY-----\n%s\n-----END RSA PRIVATE KEY-----",
	"-----BEGIN PRIVATE KEY-----\n%s",
	`client-key-data: LS0tLS1CRUdJTiBSU0E%s`,
	`x: "-----BEGIN EC PRIVATE KEY-----\n%s\n-----END EC PRIVATE KEY-----\n"`,
	`aws_secret_access_key = %s`,
	`eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJr.%s`,
}

func TestSecretsGo(t *testing.T) {
	for _, form := range forms {
		for _, secret := range []string{"hunter2hunter2", "dXNlcjpwYXNz", "s3cr3ts3cr3t"} {
			text := "before\n" + fmt.Sprintf(form, secret) + "\nafter\n"
			got := string(Text([]byte(text)))
			if strings.Contains(got, secret) || !strings.Contains(got, Mark) || !strings.HasPrefix(got, "before\n") {
				t.Errorf("%s: %s", form, got)
			}
		}
	}
}

// TestRestStays: what helps to find the cause is kept.
func TestRestStays(t *testing.T) {
	for _, text := range []string{
		"--container-runtime-endpoint=unix:///run/containerd/containerd.sock --config=/var/lib/kubelet/config.yaml\n",
		"authorization:\n  mode: Webhook\nauthentication:\n  anonymous:\n    enabled: false\n",
		`{"kind":"intent","step":"kubelet-stop","memo":{"path":"/etc/docker/daemon.json","sha256":"abc"}}` + "\n",
		"HTTP_PROXY=http://proxy:3128\n",
		"level=error msg=\"failed to load plugin\" error=\"no such file\"\n",
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
	} {
		if got := string(Text([]byte(text))); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// FuzzText: a secret between any texts goes, and nothing comes back by redacting twice.
func FuzzText(f *testing.F) {
	f.Add("a", "b", uint8(0))
	f.Add("{\"x\":\"", "\"}", uint8(3))
	f.Fuzz(func(t *testing.T, before, after string, form uint8) {
		const secret = "Zq8xW3vN7pLk"
		if strings.Contains(before+after, secret[:4]) {
			t.Skip()
		}
		text := before + "\n" + fmt.Sprintf(forms[int(form)%len(forms)], secret) + "\n" + after
		got := Text([]byte(text))
		if bytes.Contains(got, []byte(secret)) {
			t.Errorf("%q became %q", text, got)
		}
	})
}

func BenchmarkText(b *testing.B) {
	text := []byte(strings.Repeat("Nov 24 06:00:00 node-1 kubelet[1]: I1124 pod.go:1] \"SyncLoop\" pod=\"kube-system/a\" token_ttl=5\n", 10_000))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		Text(text)
	}
}
