package translate_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
)

var update = flag.Bool("update", false, "write docs/configuration.md again")

func TestDocker(t *testing.T) {
	type S = translate.Settings
	cases := map[string]struct {
		json     string
		args     string
		environ  []string
		want     S
		warnings []string // keys
	}{
		"empty file":                   {json: " \n"},
		"empty object":                 {json: "{}"},
		"byte order mark":              {json: "\ufeff{\"debug\": true}", want: S{LogLevel: "debug"}},
		"null":                         {json: `{"debug": null, "hosts": null}`},
		"mirrors":                      {json: `{"registry-mirrors": ["https://a", "http://b:5000"]}`, want: S{Mirrors: []string{"https://a", "http://b:5000"}}},
		"mirror by flag":               {args: "--registry-mirror=https://a --registry-mirror https://b", want: S{Mirrors: []string{"https://a", "https://b"}}},
		"insecure":                     {json: `{"insecure-registries": ["r:5000", "http://s/", "127.0.0.0/8"]}`, want: S{Insecure: []string{"r:5000", "s"}}},
		"insecure network":             {json: `{"insecure-registries": ["10.1.2.3/8"]}`, want: S{InsecureNetworks: []string{"10.0.0.0/8"}}, warnings: []string{"insecure-registries"}},
		"proxies":                      {json: `{"proxies": {"http-proxy": "http://p", "no-proxy": "x"}}`, want: S{Proxy: translate.Proxy{HTTP: "http://p", No: "x"}}},
		"proxies over the environment": {json: `{"proxies": {"http-proxy": "http://p"}}`, environ: []string{"HTTP_PROXY=http://e", "https_proxy=http://s"}, want: S{Proxy: translate.Proxy{HTTP: "http://p", HTTPS: "http://s"}}},
		"proxies by flag":              {args: "--https-proxy http://p", want: S{Proxy: translate.Proxy{HTTPS: "http://p"}}},
		"wrapper": {
			json: `{"default-runtime": "w", "runtimes": {"w": {"path": "/w", "runtimeArgs": ["--a"]}}}`,
			want: S{DefaultRuntime: "w", Runtimes: []translate.Runtime{{Name: "w", Path: "/w", Args: []string{"--a"}}}},
		},
		"shim":                         {json: `{"runtimes": {"gvisor": {"runtimeType": "io.containerd.runsc.v1"}}}`, want: S{Runtimes: []translate.Runtime{{Name: "gvisor", Type: "io.containerd.runsc.v1"}}}},
		"shim as the default":          {json: `{"default-runtime": "io.containerd.runsc.v1"}`, want: S{DefaultRuntime: "io.containerd.runsc.v1", Runtimes: []translate.Runtime{{Name: "io.containerd.runsc.v1", Type: "io.containerd.runsc.v1"}}}},
		"shim as the default, by flag": {args: "--default-runtime=io.containerd.kata.v2", want: S{DefaultRuntime: "io.containerd.kata.v2", Runtimes: []translate.Runtime{{Name: "io.containerd.kata.v2", Type: "io.containerd.kata.v2"}}}},
		"runc's shim as the default":   {json: `{"default-runtime": "io.containerd.runc.v2"}`, want: S{DefaultRuntime: "io.containerd.runc.v2"}},
		"twice":                        {json: `{"dns": ["1.1.1.1"], "log-opts": {"max-size": "1m"}, "dns": [], "log-opts": {"max-file": "3"}}`, want: S{LogMaxSize: 1_000_000, LogMaxFiles: 3}, warnings: []string{"dns", "log-opts"}},
		"runtime by flag":              {args: "--add-runtime=nvidia=/usr/bin/nvidia-container-runtime --default-runtime nvidia", want: S{DefaultRuntime: "nvidia", Runtimes: []translate.Runtime{{Name: "nvidia", Path: "/usr/bin/nvidia-container-runtime"}}}},
		"ulimits":                      {json: `{"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 16384}}}`, want: S{Ulimits: []translate.Limit{{Name: "nofile", Soft: 1024, Hard: 16384}}}},
		"ulimit by flag":               {args: "--default-ulimit nofile=1000:20000 --default-ulimit=nproc=5", want: S{Ulimits: []translate.Limit{{Name: "nofile", Soft: 1000, Hard: 20000}, {Name: "nproc", Soft: 5, Hard: 5}}}},
		"other ulimits":                {json: `{"default-ulimits": {"fsize": {"Name": "fsize", "Soft": 1, "Hard": -1}}}`, want: S{Ulimits: []translate.Limit{{Name: "fsize", Soft: 1, Hard: -1}}}},
		"log options":                  {json: `{"log-driver": "json-file", "log-opts": {"max-size": "10m", "max-file": "3"}}`, want: S{LogMaxSize: 10_000_000, LogMaxFiles: 3}},
		"one log file":                 {json: `{"log-opts": {"max-size": "1g", "max-file": "1", "tag": "x"}}`, want: S{LogMaxSize: 1e9, LogMaxFiles: 2}, warnings: []string{"log-opts", "log-opts"}},
		"log driver":                   {json: `{"log-driver": "journald"}`, warnings: []string{"log-driver"}},
		"selinux":                      {json: `{"selinux-enabled": true}`, want: S{SELinux: true}},
		"no selinux":                   {json: `{"selinux-enabled": false}`},
		"debug over level":             {json: `{"debug": true, "log-level": "warn"}`, want: S{LogLevel: "debug"}},
		"letters":                      {args: "-D -l info -H fd:// -Htcp://0.0.0.0:2375 -s=vfs", want: S{LogLevel: "debug", StorageDriver: "vfs"}},
		"downloads":                    {json: `{"max-concurrent-downloads": 7}`, want: S{MaxDownloads: 7}},
		"metrics":                      {json: `{"metrics-addr": "127.0.0.1:9323"}`, warnings: []string{"metrics-addr"}},
		"init":                         {json: `{"init": true, "no-new-privileges": true}`, warnings: []string{"init", "no-new-privileges"}},
		"no init":                      {json: `{"init": false, "no-new-privileges": false}`},
		"data root":                    {json: `{"data-root": "/data"}`, warnings: []string{"data-root"}},
		"usual data root":              {json: `{"data-root": "/var/lib/docker"}`},
		"seccomp":                      {json: `{"seccomp-profile": "/etc/p.json"}`, warnings: []string{"seccomp-profile"}},
		"userns":                       {json: `{"userns-remap": "default"}`, warnings: []string{"userns-remap"}},
		"storage options":              {json: `{"storage-driver": "overlay2", "storage-opts": ["overlay2.override_kernel_check=true"]}`, want: S{StorageDriver: "overlay2"}},
		"quota":                        {json: `{"storage-opts": ["overlay2.size=10G"]}`, warnings: []string{"storage-opts"}},
		"unknown":                      {json: `{"frob": {"a": [1, {"b": null}]}}`, warnings: []string{"frob"}},
		"network":                      {json: `{"bip": "1.2.3.4/24", "mtu": 1400, "default-address-pools": [{"base": "10.0.0.0/8", "size": 24}], "live-restore": true, "features": {"buildkit": true}}`},
		"shm size":                     {json: `{"default-shm-size": "64M"}`},
		"cgroup driver":                {json: `{"exec-opts": ["native.cgroupdriver=systemd"]}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, findings, err := translate.Docker(translate.Input{File: "d.json", Data: []byte(c.json), Args: append([]string{"dockerd"}, strings.Fields(c.args)...), Environ: c.environ})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmpopts.IgnoreFields(translate.Runtime{}, "Where")); diff != "" {
				t.Errorf("settings -want +got\n%s", diff)
			}
			var warnings []string
			for _, f := range findings {
				if f.Verdict == translate.Warned {
					warnings = append(warnings, f.Key)
				}
			}
			for _, key := range c.warnings {
				if !slices.Contains(warnings, key) {
					t.Errorf("no warning about %s: %v", key, findings)
				}
			}
			if len(c.warnings) == 0 && len(warnings) > 0 {
				t.Errorf("warnings %v", findings)
			}
		})
	}
}

func TestDockerTellsWhereAFileIsWrong(t *testing.T) {
	for name, c := range map[string]struct{ json, want string }{
		"not JSON":         {"{\n  debug: true\n}", "d.json:2:3:"},
		"cut off":          {"{\"debug\":", "d.json:1:10: the file ends too early"},
		"a comma too many": {"{\"debug\": true,\n}", "d.json:2:1:"},
		"more":             {"{}\n{}", "d.json:2:1: there is something after"},
		"a list":           {"[]", "d.json:1:1: the file does not hold an object"},
		"wrong type":       {"{\n \"dns\": \"1.1.1.1\"}", "d.json:2:2: the value of dns is of the wrong type"},
		"number":           {"{\"log-opts\": {\"max-file\": 3}}", "d.json:1:2: the value of log-opts"},
		"object":           {"{\"runtimes\": \"x\"}", "the value of runtimes"},
		"not UTF-8":        {"{\"a\": \"\xff\"}", "d.json:1:8: byte 0xff is not UTF-8"},
		"UTF-16":           {"\xff\xfe{\x00\n\x00x\x00", "d.json:2:1:"},
		"10 MB":            {strings.Repeat(" ", 10<<20), "d.json:1:1: the file has 10485760 bytes"},
		"binary":           {"\x7fELF\x02\x01", "d.json:1:1:"},
		"deep":             {"{\"a\":" + strings.Repeat("[", 100000), "nested too deeply"},
		"size":             {`{"log-opts": {"max-size": "lots"}}`, "not a size"},
		"ulimit":           {`{"default-ulimits": {"nofile": {"Soft": 9, "Hard": 1}}}`, "above the hard one"},
		"no ulimit":        {`{"default-ulimits": {"files": {"Soft": 1, "Hard": 1}}}`, "there is no ulimit"},
		"runc":             {`{"runtimes": {"runc": {"path": "/x"}}}`, "Docker's own"},
		"no default":       {"{\n\"default-runtime\": \"frob\"}", "d.json:2:1: the default runtime \"frob\" is not among runtimes"},
		"path as default":  {`{"default-runtime": "/usr/bin/io.containerd.runsc.v1"}`, "is not among runtimes"},
		"flag, too":        {"{\"max-concurrent-uploads\": 1}", "also a flag"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := translate.Docker(translate.Input{File: "d.json", Data: []byte(c.json), Args: []string{"dockerd", "--max-concurrent-uploads=2"}})
			var syntax *translate.SyntaxError
			if !errors.As(err, &syntax) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	var syntax *translate.SyntaxError
	in := translate.Input{File: "d.json", Data: []byte("{\n \"frob\": 1}"), Edited: true, Version: "26.1.5"}
	if _, _, err := translate.Docker(in); !errors.As(err, &syntax) || syntax.Line != 2 || !strings.Contains(err.Error(), "frob") {
		t.Errorf("unknown key that dockerd has not read: got %v", err)
	}
	for version, refused := range map[string]bool{"20.10.24+dfsg1": true, "19.03.15": true, "23.0.0": false, "29.1": false, "": false} {
		_, _, err := translate.Docker(translate.Input{File: "d.json", Data: []byte("\ufeff{}"), Version: version})
		if got := errors.As(err, &syntax); got != refused {
			t.Errorf("byte order mark on %q: got %v", version, err)
		}
	}
	var flagErr *translate.FlagError
	for _, args := range []string{"--debug=maybe", "--default-ulimit nofile=x", "--max-concurrent-downloads=x"} {
		if _, _, err := translate.Docker(translate.Input{Args: strings.Fields("dockerd " + args)}); !errors.As(err, &flagErr) {
			t.Errorf("%s: got %v", args, err)
		}
	}
}

func TestConfigFile(t *testing.T) {
	for args, want := range map[string]string{"dockerd": "/etc/docker/daemon.json", "dockerd -D --config-file /x.json": "/x.json", "dockerd --config-file=/y": "/y"} {
		if got := translate.ConfigFile(strings.Fields(args)); got != want {
			t.Errorf("%s: got %s", args, got)
		}
	}
}

// Every key that Docker 20.10 to 28 read (daemon/config and registry/config.go of v20.10.7 and v28.5.2), by name.
func TestTableIsWholeAndSorted(t *testing.T) {
	keys := translate.Keys()
	if !slices.IsSortedFunc(keys, func(a, b translate.Key) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the table is not sorted")
	}
	verdicts := []translate.Verdict{translate.Carried, translate.Kubelets, translate.Irrelevant, translate.Warned}
	for _, k := range keys {
		if k.Becomes == "" || !slices.Contains(verdicts, k.Verdict) {
			t.Errorf("%s has no verdict or reason", k.Name)
		}
	}
	for _, name := range strings.Fields("allow-direct-routing authorization-plugins bip6 builder cdi-spec-dirs cluster-store cpu-rt-period data-root default-init " +
		"default-network-opts graph host-gateway-ips init insecure-registries ip-forward-no-drop live-restore log-format max-download-attempts metrics-addr " +
		"network-diagnostic-port oom-score-adjust proxies registry-mirrors runtimes seccomp-profile shutdown-timeout storage-opts tlsverify userns-remap") {
		if !slices.ContainsFunc(keys, func(k translate.Key) bool { return k.Name == name }) {
			t.Errorf("%s is not in the table", name)
		}
	}
}

func TestDocumentationIsFresh(t *testing.T) {
	const path = "../../../docs/configuration.md"
	if *update {
		if err := os.WriteFile(path, []byte(translate.Markdown()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil || string(have) != translate.Markdown() {
		t.Errorf("docs/configuration.md is not what the table says (%v): go test ./pkg/agent/translate -update", err)
	}
}

func FuzzDocker(f *testing.F) {
	f.Add([]byte(`{"debug": true, "runtimes": {"a": {"path": "/x", "runtimeArgs": ["b"]}}}`), "--debug -H fd://")
	f.Add([]byte("\ufeff{\"log-opts\": {\"max-size\": \"1e3k\"}}"), "-D -l")
	f.Add([]byte(`{"default-ulimits": {"nofile": {"Soft": 1}}, "insecure-registries": ["::1/128", "/"]}`), "--default-ulimit a=1:2 --x")
	f.Fuzz(func(t *testing.T, data []byte, args string) {
		in := translate.Input{File: "f", Data: data, Args: strings.Fields("dockerd " + args)}
		got, findings, err := translate.Docker(in)
		var syntax *translate.SyntaxError
		if errors.As(err, &syntax) && (syntax.Line < 1 || syntax.Column < 1 || syntax.Reason == "") {
			t.Fatalf("no place: %#v", syntax)
		}
		again, findingsAgain, _ := translate.Docker(in)
		if !reflect.DeepEqual(got, again) || !reflect.DeepEqual(findings, findingsAgain) {
			t.Fatalf("not the same again:\n%v\n%v", got, again)
		}
	})
}

// The real-node tests' own files.
func TestOverlays(t *testing.T) {
	files, err := filepath.Glob("../../../test/e2e/overlays/*/etc/docker/daemon.json")
	if err != nil || len(files) < 9 {
		t.Fatalf("no overlays: %v, %v", files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := translate.Docker(translate.Input{File: file, Data: data}); err != nil {
			t.Error(err)
		}
	}
}
