package plugin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/runevidence"
)

func TestSaveEvidence(t *testing.T) {
	t.Chdir(t.TempDir())
	report := &nodeswitch.Report{Node: "node-1", Run: "r1", Evidence: []runevidence.File{
		{Name: "error.txt", Data: []byte("why")}, {Name: "host/run/journal.jsonl", Data: []byte("how")},
	}}
	var out bytes.Buffer
	for range 2 {
		saveEvidence(&out, report)
	}
	const want = "evidence of why it failed: kubectl-runtime-node-1-r1.tar.gz\nevidence of why it failed: kubectl-runtime-node-1-r1-2.tar.gz\n"
	if out.String() != want {
		t.Errorf("said %q", out.String())
	}
	if got := unpack(t, "kubectl-runtime-node-1-r1-2.tar.gz"); got != "kubectl-runtime-node-1-r1/error.txt: why\nkubectl-runtime-node-1-r1/host/run/journal.jsonl: how\n" {
		t.Errorf("holds %q", got)
	}
	if info, err := os.Stat("kubectl-runtime-node-1-r1.tar.gz"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestSaveEvidenceElsewhere has a working directory that is gone: nobody can write there, not even root.
func TestSaveEvidenceElsewhere(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	gone := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(gone)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	saveEvidence(&out, &nodeswitch.Report{Node: "n", Run: "r", Evidence: []runevidence.File{{Name: "error.txt", Data: []byte("why")}}})
	if want := "evidence of why it failed: " + filepath.Join(temp, "kubectl-runtime-n-r.tar.gz") + "\n"; out.String() != want {
		t.Errorf("said %q, want %q", out.String(), want)
	}
}

// TestSaveEvidenceHostile has a node that names files elsewhere, and a link where the bundle goes.
func TestSaveEvidenceHostile(t *testing.T) {
	top := t.TempDir()
	deep := filepath.Join(top, "a", "b")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(deep)
	t.Setenv("TMPDIR", deep)
	good := []runevidence.File{{Name: "error.txt", Data: []byte("why")}}
	for _, report := range []nodeswitch.Report{
		{Node: "n", Run: "x/../../escaped", Evidence: good},
		{Node: "n", Run: "\x1b[31m", Evidence: good},
		{Node: "../n", Run: "r", Evidence: good},
		{Node: "n", Run: "r", Evidence: []runevidence.File{{Name: "host/../../../../.ssh/authorized_keys"}}},
		{Node: "n", Run: "r", Evidence: []runevidence.File{{Name: "/etc/passwd"}}},
	} {
		var out bytes.Buffer
		saveEvidence(&out, &report)
		if !strings.HasPrefix(out.String(), "warning: the evidence was not kept: ") || strings.Contains(out.String(), "\x1b") {
			t.Errorf("%q: said %q", report.Run, out.String())
		}
	}
	if err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			t.Errorf("wrote %s", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(top, "target")
	if err := os.Symlink(target, "kubectl-runtime-n-r.tar.gz"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	saveEvidence(&out, &nodeswitch.Report{Node: "n", Run: "r", Evidence: good})
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) || out.String() != "evidence of why it failed: kubectl-runtime-n-r-2.tar.gz\n" {
		t.Errorf("said %q, wrote through a link: %v", out.String(), err)
	}
}

func unpack(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	zip, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for reader := tar.NewReader(zip); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return text.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString(header.Name + ": " + string(data) + "\n")
	}
}
