package inspect

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/desired"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/agenttest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/translate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

func TestChangedSince(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon.json")
	before := time.Now().Add(-time.Second)
	if changed, err := changedSince(path, before); changed || err != nil {
		t.Errorf("absent: %t %v", changed, err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil { // as cp -a and tar do
		t.Fatal(err)
	}
	for when, want := range map[time.Time]bool{before: true, time.Now().Add(time.Minute): false, {}: false} {
		if changed, err := changedSince(path, when); changed != want || err != nil {
			t.Errorf("since %s: %t %v", when, changed, err)
		}
	}
}

func TestInsecureRegistriesInNetworks(t *testing.T) {
	hosts := desired.RegistriesOf([]string{
		"busybox:1", "library/x@sha256:0", "docker.io/a/b:1", "10.1.0.5:5000/a:1", "10.1.0.5:5000/b@sha256:1", "192.0.2.9/a:1",
		"harbor.corp/a:1", "quay.io/a/b:2", "[fd00::5]:80/a:1", "localhost:5000/a:1",
	})
	got := hostsWithin([]string{"10.0.0.0/8", "172.16.0.0/12", "fd00::/8"}, hosts, func(host string) []netip.Addr {
		return map[string][]netip.Addr{
			"harbor.corp": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:172.16.9.9")}, "quay.io": {netip.MustParseAddr("192.0.2.2")},
		}[host]
	})
	if want := []string{"10.1.0.5:5000", "[fd00::5]:80", "harbor.corp"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// takes tells whether a real dockerd takes a configuration. One that cannot be asked is started as nobody: it reads its configuration before
// it finds that it is not root, and has done nothing by then (moby cmd/dockerd, start).
func takes(t *testing.T, d agenttest.Dockerd, args []string) (bool, string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), d.Binary, args...)
	if version.AtLeast(d.Version, 23, 0) {
		cmd.Args = append(cmd.Args, "--validate")
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	cmd.Env = []string{"PATH=" + filepath.Dir(d.Binary) + ":/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err == nil || bytes.Contains(out, []byte("needs to be started with root")) {
		return true, ""
	}
	return false, string(bytes.TrimSpace(out))
}

// copyFor copies a program to where everyone reaches it.
func copyFor(t *testing.T, who, program string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "for-"+who+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	to := filepath.Join(dir, filepath.Base(program))
	data, err := os.ReadFile(program)
	if err = errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(to, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	return to
}

// Whatever a daemon.json that dockerd has not read yet holds: the switch is refused if and only if that dockerd refuses it.
func TestVerdictIsDockerds(t *testing.T) {
	type form struct {
		json, args string
		// stricter: dockerd starts with it, and no container does, or containerd has no place for it.
		stricter bool
	}
	forms := map[string]form{
		"empty": {json: ""}, "blank": {json: " \n"}, "null": {json: "null"}, "empty object": {json: "{}"}, "a list": {json: "[]"}, "a text": {json: `"debug"`},
		"twice": {json: `{"debug": true, "log-level": "info", "debug": false}`}, "lists twice": {json: `{"dns": ["1.1.1.1"], "dns": ["8.8.8.8"]}`},
		"objects twice": {json: `{"log-opts": {"max-size": "1m"}, "log-opts": {"max-file": "3"}}`}, "twice inside": {json: `{"log-opts": {"max-size": "1m", "max-size": "2m"}}`},
		"twice, wrong first": {json: `{"debug": "x", "debug": true}`}, "twice, null last": {json: `{"mtu": 1400, "mtu": null}`},
		"unknown": {json: `{"frob": 1}`}, "unknown object": {json: `{"frob": {}}`}, "unknown object of keys": {json: `{"frob": {"debug": true}}`}, "unknown object of others": {json: `{"frob": {"bar": 1}}`},
		"comment as a key": {json: `{"_comment": "x"}`}, "other case": {json: `{"Debug": true}`}, "flag's name": {json: `{"registry-mirror": ["https://a"]}`}, "flag's object": {json: `{"log-opt": {"a": "b"}}`},
		"comment": {json: "{\"debug\": true // x\n}"}, "comma too many": {json: `{"debug": true,}`}, "single quotes": {json: `{'debug': true}`}, "cut off": {json: `{"debug":`},
		"brace too many": {json: `{"debug": true}}`}, "second object": {json: "{}\n{}"}, "not UTF-8": {json: "{\"log-driver\": \"\xff\"}"},
		"byte order mark": {json: "\ufeff{}"}, "UTF-16": {json: "\xff\xfe{\x00}\x00"}, "UTF-16 of the other order": {json: "\xfe\xff\x00{\x00}"}, "UTF-16, unknown": {json: "\xff\xfe{\x00\"\x00a\x00\"\x00:\x001\x00}\x00"},
		"cluster-store": {json: `{"cluster-store": "x"}`}, "graph": {json: `{"graph": "/g"}`}, "proxies": {json: `{"proxies": {"http-proxy": "http://p"}}`},
		"TLS without files": {json: `{"tlsverify": true, "tlscacert": "/nowhere"}`}, "log format": {json: `{"log-format": "json"}`}, "CDI": {json: `{"cdi-spec-dirs": ["/etc/cdi"]}`},
		"shm size": {json: `{"default-shm-size": "64M"}`}, "shm size as a number": {json: `{"default-shm-size": 67108864}`}, "shm size null": {json: `{"default-shm-size": null}`},
		"text for a list": {json: `{"dns": "1.1.1.1"}`}, "text for a number": {json: `{"mtu": "1400"}`}, "number for a text": {json: `{"log-opts": {"max-file": 3}}`}, "text for a switch": {json: `{"debug": "true"}`},
		"half": {json: `{"max-concurrent-downloads": 1.5}`}, "negative": {json: `{"max-concurrent-downloads": -1}`}, "no address": {json: `{"dns": ["x"]}`}, "no label": {json: `{"labels": ["a"]}`},
		"log level": {json: `{"log-level": "loud"}`}, "cgroup namespaces": {json: `{"default-cgroupns-mode": "x"}`}, "IPC": {json: `{"default-ipc-mode": "host"}`},
		"pools": {json: `{"default-address-pools": [{"base": "10.0.0.0/8", "size": 24}]}`}, "pools as an object": {json: `{"default-address-pools": {"base": "10.0.0.0/8"}}`},
		"features": {json: `{"features": {"buildkit": true}}`}, "builder": {json: `{"builder": {"gc": {"enabled": true}}}`},
		"shim as a default": {json: `{"default-runtime": "io.containerd.runsc.v1"}`, stricter: false}, "runc's shim": {json: `{"default-runtime": "io.containerd.runc.v2"}`},
		"old shim": {json: `{"default-runtime": "io.containerd.runtime.v1.linux"}`}, "no default": {json: `{"default-runtime": ""}`},
		"runtime": {json: `{"runtimes": {"a": {"path": "/a", "frob": 1}}, "default-runtime": "a"}`}, "runtime of nothing": {json: `{"runtimes": {"a": {"path": "/a", "runtimeArgs": null}}}`},
		"flag, too": {json: `{"hosts": ["fd://"]}`, args: "-H fd://"}, "labels as a flag, too": {json: `{"labels": ["a=b"]}`, args: "--label c=d"}, "runtimes as a flag, too": {json: `{"runtimes": {"a": {"path": "/a"}}}`, args: "--add-runtime b=/b"},
		// dockerd refuses these later in its start, or starts and runs no container.
		"unknown default":   {json: `{"default-runtime": "frob"}`, stricter: true},
		"path as a default": {json: `{"default-runtime": "/usr/bin/runsc"}`, stricter: true},
		"runc":              {json: `{"runtimes": {"runc": {"path": "/x"}}}`, stricter: true},
		"no host":           {json: `{"insecure-registries": ["a/b"]}`, stricter: true},
		"ulimit":            {json: `{"default-ulimits": {"files": {"Soft": 1, "Hard": 1}}}`, stricter: true},
	}
	for _, d := range agenttest.Dockerds(t) {
		if !version.AtLeast(d.Version, 23, 0) {
			d.Binary = copyFor(t, "nobody", d.Binary)
		}
		t.Run(d.Version, func(t *testing.T) {
			taken, dir := 0, filepath.Dir(copyFor(t, "nobody", "/etc/hostname"))
			for name, form := range forms {
				t.Run(name, func(t *testing.T) {
					file := filepath.Join(dir, "daemon.json")
					if err := os.WriteFile(file, []byte(form.json), 0o644); err != nil {
						t.Fatal(err)
					}
					args := append(strings.Fields(form.args), "--config-file", file)
					want, why := takes(t, d, args)
					if want {
						taken++
					}
					in := translate.Input{
						File: file, Data: []byte(form.json), Edited: true, Version: d.Version, Args: append([]string{"dockerd"}, args...),
					}
					// That a later one is asked is TestDockerdIsAsked's: here its answer is known.
					in.Accepted = want && version.AtLeast(d.Version, 23, 0)
					err := refusedAnyway(want, in)
					if got := err == nil; got != (want && !form.stricter) {
						t.Errorf("ours: %v\ndockerd's: %q", err, why)
					}
					if err != nil && !strings.Contains(err.Error(), file) {
						t.Errorf("the refusal does not name the file: %v", err)
					}
				})
			}
			if taken < 20 || taken > len(forms)-20 {
				t.Errorf("dockerd takes %d of %d forms: it was hardly asked", taken, len(forms))
			}
		})
	}
}

// refusedAnyway is what becomes of a configuration of a dockerd that can be asked, or of one that cannot.
func refusedAnyway(taken bool, in translate.Input) error {
	if version.AtLeast(in.Version, 23, 0) && !taken {
		return errors.New(in.File + ": dockerd's own refusal")
	}
	_, _, err := translate.Docker(in)
	return err
}

// A dockerd that can judge its configuration is asked, with its own arguments and environment; what it refuses is named with its place.
func TestDockerdIsAsked(t *testing.T) {
	dockerds := agenttest.Dockerds(t)
	d := dockerds[1]
	file := filepath.Join(t.TempDir(), "daemon.json")
	run := func(t *testing.T, json, dockerd string, edited bool, args ...string) (*inspection, error) {
		t.Helper()
		if err := os.WriteFile(file, []byte(json), 0o600); err != nil {
			t.Fatal(err)
		}
		i := &inspection{h: &node.Host{}}
		_, _, err := translateConfig(t.Context(), i, dockerd, translate.Input{
			File: file, Data: []byte(json), Edited: edited, Version: d.Version, Args: append([]string{"dockerd", "--config-file=" + file}, args...),
			Environ: []string{"NOTIFY_SOCKET=/nowhere", "PATH=" + filepath.Dir(d.Binary) + ":/usr/sbin:/usr/bin:/sbin:/bin", ""},
		})
		return i, err
	}
	for name, c := range map[string]struct {
		json   string
		args   []string
		edited bool
		want   []string // nothing: it is taken
	}{
		"taken":              {json: "{\n\"debug\": true,\n \"debug\": false}", edited: true},
		"with a flag":        {json: "{\n \"hosts\": [\"fd://\"]}", args: []string{"-H", "fd://"}, want: []string{file + ":2:2: ", "both as a flag"}},
		"gone since 23.0":    {json: "{\n \"cluster-store\": \"x\"}", want: []string{file + ":2:2: ", "don't match any configuration option: cluster-store", "no way back"}},
		"edited":             {json: "{\n \"frob\": 1}", edited: true, want: []string{file + ":2:2: ", "was changed since dockerd started", "frob"}},
		"no JSON":            {json: "{\n debug: 1}", edited: true, want: []string{file + ":2:2: ", "was changed since dockerd started", "invalid character 'd'"}},
		"files that are not": {json: "{\"tlsverify\": true, \"tlscert\": \"/nowhere\"}", want: []string{file, "/nowhere"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := run(t, c.json, d.Binary, c.edited, c.args...)
			if (err == nil) != (c.want == nil) {
				t.Fatal(err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
		})
	}
	// One that does not answer is no reason to refuse; and an older one is not asked what it does not know.
	for _, dockerd := range []string{dockerds[0].Binary, "/bin/false", "/nowhere/dockerd"} {
		i, err := run(t, `{"debug": true}`, dockerd, true)
		if err != nil || len(i.Facts.Warnings) != 1 || !strings.Contains(i.Facts.Warnings[0], "could not be asked") {
			t.Errorf("%s: %v, warnings %q", dockerd, err, i.Facts.Warnings)
		}
	}
}

// What counts of a key that is there twice is what a real dockerd makes of it.
func TestKeysThatAreThereTwice(t *testing.T) {
	const file = `{"registry-mirrors": ["https://a"], "debug": false, "insecure-registries": ["a:5000", "b:5000"], "live-restore": true,
		"runtimes": {"r": {"path": "/r"}, "s": {"path": "/s"}}, "default-runtime": "r", "log-driver": "journald",
		"registry-mirrors": ["https://b", "https://c"], "debug": true, "insecure-registries": ["c:5000"],
		"runtimes": {"s": {"path": "/other"}, "t": {"path": "/t"}, "t": {"path": "/last"}}, "default-runtime": "s", "default-runtime": null, "log-driver": "json-file"}`
	engine := agenttest.StartEngineWith(t, "vfs", file)
	var info struct {
		RegistryConfig struct {
			Mirrors      []string
			IndexConfigs map[string]struct{ Secure bool }
		}
		Debug                         bool
		DefaultRuntime, LoggingDriver string
		Runtimes                      map[string]struct{ Path string }
	}
	if err := json.Unmarshal([]byte(engine.Docker("info", "--format", "{{json .}}")), &info); err != nil {
		t.Fatal(err)
	}
	got, findings, err := translate.Docker(translate.Input{File: "daemon.json", Data: []byte(file), Version: "20.10.24"})
	if err != nil {
		t.Fatal(err)
	}
	var mirrors, insecure []string
	for _, mirror := range info.RegistryConfig.Mirrors {
		mirrors = append(mirrors, strings.TrimSuffix(mirror, "/"))
	}
	for host, index := range info.RegistryConfig.IndexConfigs {
		if !index.Secure {
			insecure = append(insecure, host)
		}
	}
	runtimes := map[string]string{}
	for _, r := range got.Runtimes {
		runtimes[r.Name] = r.Path
	}
	theirs := map[string]string{}
	for name, r := range info.Runtimes {
		if r.Path != "runc" {
			theirs[name] = r.Path
		}
	}
	for _, pair := range [][2]any{
		{mirrors, got.Mirrors}, {insecure, got.Insecure}, {theirs, runtimes}, {info.DefaultRuntime, got.DefaultRuntime}, {info.Debug, got.LogLevel == "debug"},
	} {
		if diff := cmp.Diff(pair[0], pair[1]); diff != "" {
			t.Errorf("-dockerd's +ours\n%s", diff)
		}
	}
	if len(theirs) != 3 || info.LoggingDriver != "json-file" {
		t.Errorf("dockerd has the runtimes %v and logs to %s", theirs, info.LoggingDriver)
	}
	var twice []string
	for _, f := range findings {
		if strings.Contains(f.Text, "has it twice") && f.Verdict == translate.Warned {
			twice = append(twice, f.Key)
		}
	}
	if want := "registry-mirrors debug insecure-registries runtimes t default-runtime default-runtime log-driver"; strings.Join(twice, " ") != want {
		t.Errorf("warnings about %q, want %q", twice, want)
	}
}
