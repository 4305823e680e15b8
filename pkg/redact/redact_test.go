package redact

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// write puts a secret into a form.
func write(form, secret string) string {
	args := make([]any, strings.Count(form, "%s"))
	for i := range args {
		args[i] = secret
	}
	return fmt.Sprintf(form, args...)
}

func TestSecretsGo(t *testing.T) {
	if len(forms) < 150 {
		t.Errorf("only %d forms", len(forms))
	}
	for _, form := range forms {
		for _, secret := range []string{"hunter2hunter2", "dXNlcjpwYXNz", "s3cr3ts3cr3t", "Zq8xW3vN7pLkAb12"} {
			text := "before\n" + write(form, secret) + "\n"
			got := String(text)
			if strings.Contains(got, secret) || !strings.Contains(got, Mark) || !strings.HasPrefix(got, "before\n") {
				t.Errorf("%s: %s", form, got)
			}
			if again := String(got); again != got {
				t.Errorf("%s: %q became %q", form, got, again)
			}
			// What follows is not lost, but behind a key that has no end.
			if got := String(text + "after\n"); !strings.HasSuffix(got, "\nafter\n") && !strings.Contains(form, "BEGIN PRIVATE KEY") {
				t.Errorf("%s: loses what follows: %s", form, got)
			}
		}
	}
}

// TestInside has each form of one line inside of a JSON string, and in base64, as journals and memos hold files.
func TestInside(t *testing.T) {
	const secret = "Zq8xW3vN7pLkAb12"
	for _, form := range forms {
		text := write(form, secret)
		if got := String(`{"content":"` + base64.StdEncoding.EncodeToString([]byte(text)) + `"}`); got != `{"content":"`+Mark+`"}` && len(text) > 18 && !strings.Contains(text, "\n") {
			t.Errorf("%s in base64: %s", form, got)
		}
	}
}

// TestRestStays: what helps to find the cause is kept.
func TestRestStays(t *testing.T) {
	for _, text := range plain {
		if got := String(text + "\n"); got != text+"\n" {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestRestOfLineStays(t *testing.T) {
	for text, want := range map[string]string{
		`{"password":"x1","user":"bob"}`:                     `{"password":"REDACTED","user":"bob"}`,
		`{"a":"{\"token\": \"x1\", \"b\":1}"}`:               `{"a":"{\"token\": \"REDACTED\", \"b\":1}"}`,
		`kubelet --token=x1 --v=2`:                           `kubelet --token=REDACTED --v=2`,
		`["kubelet","--token","x1","--v=2"]`:                 `["kubelet","--token","REDACTED","--v=2"]`,
		`https://h/x?sv=1&sig=x1&se=2`:                       `https://h/x?sv=1&sig=REDACTED&se=2`,
		`http://u:x1@proxy:3128/a`:                           `http://REDACTED@proxy:3128/a`,
		`env: [A=1 DB_PASSWORD=x1 B=2]`:                      `env: [A=1 DB_PASSWORD=REDACTED B=2]`,
		`{"env":[{"name":"DB_PASSWORD","value":"x1"},1]}`:    `{"env":[{"name":"DB_PASSWORD","value":"REDACTED"},1]}`,
		`{"password":"a\"b","c":1}`:                          `{"password":"REDACTED","c":1}`,
		"auth:\n  username: bob\n  password: x1\n  email: a": "auth:\n  username: bob\n  password: REDACTED\n  email: a",
		"token: |\n  x1\n  x2\nnext: 1":                      "token: |\n  REDACTED\n  REDACTED\nnext: 1",
		"a: 1\r\ntoken: x1\r\nb: 2\r\n":                      "a: 1\r\ntoken: REDACTED\r\nb: 2\r\n",
		`Server=h;Uid=u;Pwd=x1;`:                             `Server=h;Uid=u;Pwd=REDACTED;`,
	} {
		if got := String(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

// FuzzText: a secret between any texts goes, and what was redacted once is not changed again.
func FuzzText(f *testing.F) {
	f.Add("a", "b", uint8(0))
	f.Add("{\"x\":\"", "\"}", uint8(3))
	f.Fuzz(func(t *testing.T, before, after string, form uint8) {
		const secret = "Zq8xW3vN7pLk"
		if strings.Contains(before+after, secret[:4]) {
			t.Skip()
		}
		text := before + "\n" + write(forms[int(form)%len(forms)], secret) + "\n" + after
		got := Text([]byte(text))
		if bytes.Contains(got, []byte(secret)) {
			t.Errorf("%q became %q", text, got)
		}
	})
}

// BenchmarkHostileLine: who writes a file on a node cannot keep its reader busy. The megabytes per second of a part are about the same for both
// sizes; with a search to the line's end for each match, those of the long line are a sixteenth.
func BenchmarkHostileLine(b *testing.B) {
	for _, part := range []string{
		"pass=x,pass=x,", "pass=}", "pass=x;", "a://", "://@", "a://b:c@", `"pass":a`, `pass='`, `pass="\"`, "pass= ", "pass=[", "pass=,", "x:y@z",
		"-----BEGIN PRIVATE KEY-----", "name: pass value: ", "name=pass,value=x,", "--pass ", "login -p ", "bearer ", "proxy=//a:b", "key=key", "TokenToken", "authorization: basic ",
	} {
		for _, size := range []int{16 << 10, 256 << 10} {
			b.Run(fmt.Sprintf("%s/%dKiB", part, size>>10), func(b *testing.B) {
				line := strings.Repeat(part, size/len(part))
				b.SetBytes(int64(len(line)))
				for b.Loop() {
					String(line)
				}
			})
		}
	}
}

func BenchmarkText(b *testing.B) {
	text := []byte(strings.Repeat("Nov 24 06:00:00 node-1 kubelet[1]: I1124 pod.go:1] \"SyncLoop\" pod=\"kube-system/a\" token_ttl=5\n", 10_000))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		Text(text)
	}
}
