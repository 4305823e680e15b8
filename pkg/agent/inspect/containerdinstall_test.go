package inspect

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/bundle"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/containerd"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/packages"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

func mustVersion(t *testing.T, text string) *version.Version {
	t.Helper()
	if text == "" {
		return nil
	}
	v, err := containerd.ParseVersion("containerd x " + text)
	if err != nil {
		t.Fatal(err)
	}
	return &v
}

func TestPlanPackages(t *testing.T) {
	const bin = "/usr/bin/containerd"
	docker := packages.Package{Name: "docker.io", Old: "20"}
	for _, test := range []struct {
		name, kubelet, was string
		m                  nodetest.Packages
		want, wantReason   string // package and version, or why not
	}{
		{"the distribution's", "v1.30.0", "", nodetest.Packages{Repository: map[string][]string{"containerd": {"1.6.20~ds1-1"}}}, "containerd 1.6.20~ds1", ""},
		{"Docker's repository first", "v1.30.0", "", nodetest.Packages{Repository: map[string][]string{"containerd": {"1.6.20-1"}, "containerd.io": {"2.2.1-1"}}}, "containerd.io 2.2.1", ""},
		{"too new for an old kubelet", "v1.22.17", "", nodetest.Packages{Repository: map[string][]string{"containerd.io": {"2.2.1-1", "1.7.27-1", "1.6.33-1"}}}, "containerd.io 1.7.27", ""},
		{"only what is too old", "v1.23.17", "", nodetest.Packages{Repository: map[string][]string{"containerd": {"1.4.13-1"}}}, "", "repositories have no containerd that would do"},
		{"nothing", "v1.23.17", "", nodetest.Packages{}, "", "repositories have no containerd.io that would do"},
		{"would remove Docker", "v1.30.0", "", nodetest.Packages{
			Repository: map[string][]string{"containerd.io": {"1.7.27-1"}}, Removes: map[string][]packages.Package{"containerd.io": {docker}},
		}, "", "would remove docker.io"},
		{"would remove Docker, and the other one does not", "v1.30.0", "", nodetest.Packages{
			Repository: map[string][]string{"containerd.io": {"1.7.27-1"}, "containerd": {"1.6.20-1"}}, Removes: map[string][]packages.Package{"containerd.io": {docker}},
		}, "containerd 1.6.20", ""},
		{"upgrade", "v1.30.0", "1.4.13", nodetest.Packages{
			Owners: map[string]string{bin: "containerd"}, Has: map[string]string{"containerd": "1.4.13-1"}, Repository: map[string][]string{"containerd": {"1.6.20-1", "1.4.13-1"}},
		}, "containerd 1.6.20", ""},
		{"upgrade within the major version", "v1.30.0", "1.4.13", nodetest.Packages{
			Owners: map[string]string{bin: "containerd.io"}, Has: map[string]string{"containerd.io": "1.4.13-1"}, Repository: map[string][]string{"containerd.io": {"2.2.1-1", "1.7.27-1", "1.4.13-1"}},
		}, "containerd.io 1.7.27", ""},
		{"no way back", "v1.30.0", "1.4.13", nodetest.Packages{
			Owners: map[string]string{bin: "containerd"}, Has: map[string]string{"containerd": "1.4.13-1"}, Repository: map[string][]string{"containerd": {"1.6.20-1"}},
		}, "", "no way back: the repositories do not have containerd 1.4.13-1"},
		{"no way back for runc", "v1.30.0", "1.4.13", nodetest.Packages{
			Owners: map[string]string{bin: "containerd"}, Has: map[string]string{"containerd": "1.4.13-1", "runc": "1.0"},
			Repository: map[string][]string{"containerd": {"1.6.20-1", "1.4.13-1"}, "runc": {"1.1"}},
			Brings:     map[string][]packages.Package{"containerd": {{Name: "runc", New: "1.1"}}},
		}, "", "do not have runc 1.0"},
		{"would upgrade Docker", "v1.30.0", "1.4.13", nodetest.Packages{
			Owners: map[string]string{bin: "containerd"}, Has: map[string]string{"containerd": "1.4.13-1", "docker-ce": "20"},
			Repository: map[string][]string{"containerd": {"1.6.20-1", "1.4.13-1"}},
			Brings:     map[string][]packages.Package{"containerd": {{Name: "docker-ce", New: "24"}}},
		}, "", "would upgrade docker-ce"},
		{"no package's", "v1.30.0", "1.4.13", nodetest.Packages{Repository: map[string][]string{"containerd": {"1.6.20-1"}}}, "", "belongs to no package"},
	} {
		t.Run(test.name, func(t *testing.T) {
			version, err := kubelet.ParseVersion(test.kubelet)
			if err != nil {
				t.Fatal(err)
			}
			i := &inspection{h: &node.Host{Packages: &test.m}, report: node.Silent{}, setup: kubelet.Setup{Version: version}}
			if test.was != "" {
				i.ContainerdBinary = bin
			}
			n, reasons, err := planPackages(t.Context(), i, mustVersion(t, test.was))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if n != nil {
				got = n.Package + " " + n.Version
			}
			if got != test.want || !strings.Contains(strings.Join(reasons, "; "), test.wantReason) {
				t.Errorf("%q, %q", got, reasons)
			}
		})
	}
}

// TestPlanInstallByOldLists: a plan, which fetches no lists, says what those that are there tell, and does not take for a refusal what
// newer ones may cure.
func TestPlanInstallByOldLists(t *testing.T) {
	version, err := kubelet.ParseVersion("v1.30.0")
	if err != nil {
		t.Fatal(err)
	}
	was := mustVersion(t, "1.4.13") // with it, nobody is looked for at containerd's socket
	owners := map[string]string{"/usr/bin/containerd": "containerd"}
	lists := time.Now().Add(-50 * time.Hour)
	for _, test := range []struct {
		name     string
		m        nodetest.Packages
		readOnly bool
		check    string
		want     []string
	}{
		{"not in the lists", nodetest.Packages{Owners: owners, Lists: lists}, true, protocol.CheckMayInstall, []string{"is not known", "fake's package lists of " + lists.UTC().Format(time.DateOnly) + " (2 days old)"}},
		{"no lists", nodetest.Packages{Owners: owners}, true, protocol.CheckMayInstall, []string{"is not known", "never fetched"}},
		{"a switch, which has fetched them", nodetest.Packages{Owners: owners, Lists: lists}, false, protocol.CheckContainerd, []string{"nothing was found that could be installed safely"}},
		{"what the lists have would not do", nodetest.Packages{Owners: owners, Repository: map[string][]string{"containerd": {"1.5.0-1"}}}, true, protocol.CheckContainerd, []string{"nothing was found"}},
	} {
		i := &inspection{h: &node.Host{Packages: &test.m, ReadOnly: test.readOnly}, report: node.Silent{}, setup: kubelet.Setup{Version: version}}
		i.ContainerdBinary = "/usr/bin/containerd"
		_ = i.take(t.Context(), check{id: protocol.CheckContainerd, run: func(ctx context.Context, i *inspection) error {
			_, err := planInstall(ctx, i, was)
			return err
		}})
		if len(i.findings) != 1 || i.findings[0].Check != test.check || i.findings[0].Hint == "" || !slices.Contains(i.failed, protocol.CheckContainerd) {
			t.Errorf("%s: %+v, failed %v", test.name, i.findings, i.failed)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(i.findings[0].Message, want) {
				t.Errorf("%s: %q does not say %q", test.name, i.findings[0].Message, want)
			}
		}
	}
}

// TestStrayProgram: a package never takes the place of a program that no package has, such as one of Docker's static binaries.
func TestStrayProgram(t *testing.T) {
	dir := t.TempDir()
	owned, stray := filepath.Join(dir, "containerd"), filepath.Join(dir, "runc")
	for _, path := range []string{owned, stray} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := &nodetest.Packages{Owners: map[string]string{owned: "containerd"}}
	for want, paths := range map[string][]string{"": {filepath.Join(dir, "ctr"), owned}, stray: {owned, stray}} {
		if got, err := strayProgram(t.Context(), m, paths); err != nil || got != want {
			t.Errorf("%v: %q %v, want %q", paths, got, err, want)
		}
	}
}

func TestNofile(t *testing.T) {
	for _, test := range [][3]string{{"1024", "524288", "1024:524288"}, {"infinity", "infinity", "infinity"}, {"", "18446744073709551615", "infinity"}, {"", "", "infinity"}, {"", "4096", "4096"}} {
		if got := nofile(test[0], test[1]); got != test[2] {
			t.Errorf("%v: %s", test, got)
		}
	}
}

// TestRefuseOther: two containerds would share a root and a socket.
func TestRefuseOther(t *testing.T) {
	address := filepath.Join(t.TempDir(), "c.sock")
	if err := refuseOther(t.Context(), "/proc", address); err != nil {
		t.Errorf("nobody listens: %v", err)
	}
	listener, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	var hint interface{ Hint() string }
	if err := refuseOther(t.Context(), "/proc", address); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", os.Getpid())) || !errors.As(err, &hint) {
		t.Errorf("%v", err)
	}
}

func TestPlanArchive(t *testing.T) {
	script := func(version string) string {
		return "#!/bin/sh\necho containerd example.com/containerd v" + version + " abc\n"
	}
	for _, test := range []struct {
		name, kubelet, was string
		programs           map[string]string
		want, wantErr      string
	}{
		{"upstream with runc", "v1.30.0", "", map[string]string{"containerd": script("2.4.2"), bundle.Shim: "x", "runc": "x"}, "2.4.2", ""},
		{"for an old kubelet", "v1.22.17", "", map[string]string{"containerd": script("1.7.30"), bundle.Shim: "x", "runc": "x"}, "1.7.30", ""},
		{"too new for an old kubelet", "v1.22.17", "", map[string]string{"containerd": script("2.4.2"), bundle.Shim: "x", "runc": "x"}, "", "no CRI version in common"},
		{"too old", "v1.30.0", "", map[string]string{"containerd": script("1.5.18"), bundle.Shim: "x", "runc": "x"}, "", "too old"},
		{"replaces", "v1.30.0", "1.4.13", map[string]string{"containerd": script("1.7.30"), bundle.Shim: "x", "runc": "x"}, "1.7.30", ""},
		{"replaces across major versions", "v1.30.0", "1.4.13", map[string]string{"containerd": script("2.4.2"), bundle.Shim: "x", "runc": "x"}, "", "major version has to stay 1"},
		{"for another machine", "v1.30.0", "", map[string]string{"containerd": "\x7fELF junk", bundle.Shim: "x", "runc": "x"}, "", "exec format error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			version, err := kubelet.ParseVersion(test.kubelet)
			if err != nil {
				t.Fatal(err)
			}
			var data bytes.Buffer
			w := tar.NewWriter(&data)
			for name, content := range test.programs {
				if err := w.WriteHeader(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write([]byte(content)); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "containerd.tar")
			if err := os.WriteFile(path, data.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			i := &inspection{h: &node.Host{Runner: host.Exec{}}, report: node.Silent{}, setup: kubelet.Setup{Version: version}}
			n, err := planArchive(t.Context(), i, path, mustVersion(t, test.was))
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Errorf("%v, want %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n.Version != test.want || n.Binary != installRoot+"/containerd-"+test.want+"/bin/containerd" {
				t.Errorf("%+v", n)
			}
		})
	}
}
