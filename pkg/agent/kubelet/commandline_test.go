package kubelet

import (
	"slices"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// TestParseEnv is what systemd makes of environment files: see load_env_file's tests in src/test/test-env-file.c.
func TestParseEnv(t *testing.T) {
	for _, test := range []struct {
		data string
		want []string
	}{
		{"a=a\nb=b", []string{"a=a", "b=b"}},
		{"a=a\\\nb=c", []string{"a=ab=c"}},
		{"a= 'b' \"c\" d", []string{"a=bcd"}},
		{"a='x y'\\\n z", []string{"a=x yz"}},
		{"a=x \"y\" z  \n", []string{`a=x "y" z`}},
		{"a=\"\\$x \\q\"", []string{`a=$x \q`}},
		{"# c=d\n; e=f\n  g = h \n", []string{"g=h"}},
		{"1a=b\nexport b=c\nd=e", []string{"d=e"}},
		{"a=''\nb=\nc", []string{"a=", "b="}},
		{"a=\"1\n2\"\nb=3", []string{"a=1\n2", "b=3"}},
	} {
		variables, err := parseEnv([]byte(test.data))
		var got []string
		for _, v := range variables {
			got = append(got, v.name+"="+string(v.text.value))
		}
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%q: %q, want %q (%v)", test.data, got, test.want, err)
		}
	}
	for _, bad := range []string{"a='x", "a=\"x", "a=x\\", "# c\\\na=b"} {
		if v, err := parseEnv([]byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, v)
		}
	}
}

func TestCommandLine(t *testing.T) {
	files := map[string]string{
		"u":    "[Unit]\nExecStart=no\n[Service]\nExecStart=-/bin/kubelet first\nEnvironment=A=1 \"B=2 3\" 'C=4'\nEnvironment=D=\"5 6\"\n",
		"d":    "[Service]\n; c\nExecStart=\nExecStart=@/bin/kubelet name --one=${B} $B '$C' $NONE x${NONE}y $$z \"a b\" \\\n  --host=%H 100%% ${D} $A\nEnvironmentFile=-/none\nEnvironmentFile=/env\n",
		"/env": "A='7  \"8 9\"'\n",
	}
	svc, err := loadService(reader(files), []string{"u", "d"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/bin/kubelet", "--one=2 3", "2", "3", "4", "xy", "$z", "a b", "--host=%H", "100%", "5 6", "7", "8 9"}
	if got := svc.args(); !slices.Equal(got, want) {
		t.Errorf("%q\nwant\n%q", got, want)
	}
	want[8] = "--host=node-1"
	if difference, ok := svc.matches(want); !ok {
		t.Errorf("a specifier does not match what systemd made of it: %s", difference)
	}
	want[1] = "--one=4"
	if _, ok := svc.matches(want); ok {
		t.Error("another flag matches")
	}
}

// FuzzParseEnv: each byte of a value is found in the file where the parser says that it is.
func FuzzParseEnv(f *testing.F) {
	for _, seed := range []string{"a=b\n", "a='b c' \"d\"\n# x\n", "A=\"--x=y \\\n--z\"", "a=\\", "K=\"\\\"\""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		variables, err := parseEnv(data)
		if err != nil {
			return
		}
		for _, v := range variables {
			checkPlaces(t, data, v.text)
		}
	})
}

func FuzzParseUnit(f *testing.F) {
	for _, seed := range []string{kubeadmDropIn, kubeadmUnit, "[Service]\nA=b\\\n#c\n d\\\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, a := range parseUnit(data) {
			checkPlaces(t, data, a.text)
		}
	})
}

func checkPlaces(t *testing.T, data []byte, x text) {
	t.Helper()
	if len(x.value) != len(x.at) || x.end < 0 || x.end > len(data) {
		t.Fatalf("%d bytes at %d places, end %d", len(x.value), len(x.at), x.end)
	}
	last := -1
	for i, at := range x.at {
		if at <= last || at >= len(data) || data[at] != x.value[i] && data[at] != '\\' {
			t.Fatalf("byte %d, %q, is not at %d", i, x.value[i], at)
		}
		last = at
	}
}

// FuzzPlan: whatever the admin's file holds, a plan either fails or changes the runtime and nothing else (Plan checks itself), and
// planning again on its result changes nothing.
func FuzzPlan(f *testing.F) {
	for _, seed := range []string{"KUBELET_EXTRA_ARGS=\n", "KUBELET_EXTRA_ARGS='--v 2'", "KUBELET_EXTRA_ARGS=\"--network-plugin=cni --docker-endpoint=x\"\n", "KUBELET_EXTRA_ARGS=--v=2 \\\n\"--x\"\n"} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, env string, flags bool) {
		files := kubeadm(map[string]string{extraEnv: env})
		if flags {
			files[flagsEnv] = "KUBELET_KUBEADM_ARGS=\"--network-plugin=cni\"\n"
		}
		svc, err := loadService(reader(files), []string{unitFile, dropIn})
		if err != nil {
			return
		}
		s := Setup{Version: version.Version{Major: 1, Minor: 23, Text: "v1.23.17"}, Args: svc.args(), UnitFiles: []string{unitFile, dropIn}, Read: reader(files)}
		plan, err := s.Plan(newEndpoint)
		if err != nil {
			return
		}
		for _, edit := range plan {
			files[edit.Path] = string(edit.New)
		}
		svc, err = loadService(s.Read, s.UnitFiles)
		if err != nil {
			t.Fatal(err)
		}
		s.Args = svc.args()
		again, err := s.Plan(newEndpoint)
		if err != nil || len(again) != 0 {
			t.Fatalf("planned again: %v %v\n%q", again, err, strings.Join(s.Args, " "))
		}
	})
}

func FuzzSetYAML(f *testing.F) {
	f.Add([]byte("{\"a\": [1, {\"containerRuntimeEndpoint\": 2}], \"containerRuntimeEndpoint\" : null}"))
	f.Add([]byte("{\n\t\"a\": 1}"))
	for _, seed := range []string{"", "a: b\n", "x: |\n  containerRuntimeEndpoint: y\n", "{}", "containerRuntimeEndpoint: a # b\r\nc: d", "--- \na: 1\n...\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		made, err := setYAML(data, "containerRuntimeEndpoint", newEndpoint)
		if err != nil {
			return
		}
		if c, err := parseConfig(made); err == nil && c.ContainerRuntimeEndpoint != newEndpoint {
			t.Fatalf("%q became %q", data, made)
		}
	})
}
