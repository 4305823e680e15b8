package evidence

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

const secret = "hunter2hunter2"

type programs struct{ log string }

func (p programs) Run(ctx context.Context, name string, args ...string) (string, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		return "", errors.New("a program that hangs would hang the agent")
	}
	if args[0] == "status" {
		return "", &host.CommandError{Command: name, Output: args[len(args)-1] + " is down", Err: errors.New("exit status 3")}
	}
	return p.log, nil
}

func collector(t *testing.T, log string) *Collector {
	t.Helper()
	root := t.TempDir()
	c := &Collector{Layout: unit.Layout{Root: root}, Run: "r1", Runner: programs{log}, Now: func() time.Time { return time.Unix(1e9, 0) }}
	dir := c.Layout.RunDir("r1")
	path := filepath.Join(root, "daemon.json")
	old := []byte(`{"password":"` + secret + `","live-restore":true}` + "\n")
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	files := host.Files{Dir: filepath.Join(dir, "files")}
	change, err := files.Plan(path, old, []byte("{}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := files.Apply(change); err != nil {
		t.Fatal(err)
	}
	memo, err := json.Marshal(map[string]any{"x": 1, "changes": []host.Change{change}})
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(dir, journal.Identity{Run: "r1", Node: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	if err := j.Append(journal.Record{Kind: journal.KindIntent, Phase: protocol.PhasePrepare, Step: "a", Memo: memo}); err != nil {
		t.Fatal(err)
	}
	return c
}

func read(t *testing.T, archive []byte) (map[string]string, int) {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files, total := map[string]string{}, 0
	for r := tar.NewReader(zip); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, total
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(data)
		total += len(data)
	}
}

func TestWrite(t *testing.T) {
	c := collector(t, "2026-01-01T00:00:00+0000 node-1 docker[1]: token="+secret+" said hello\n")
	c.Extra = map[string][]byte{"status.txt": []byte("fine\n")}
	var out bytes.Buffer
	if err := c.Write(context.Background(), &out); err != nil {
		t.Fatal(err)
	}
	files, _ := read(t, out.Bytes())
	for name, want := range map[string]string{
		"r1/status.txt":                     "fine",
		"r1/run/journal.jsonl":              `"kind":"intent"`,
		"r1/files/01-daemon.json.before":    "live-restore",
		"r1/files/01-daemon.json.to-be":     "{}",
		"r1/files/01-daemon.json.now":       "{}",
		"r1/files/index.json":               "01-daemon.json.before",
		"r1/units/kubelet.service.status":   "kubelet.service is down",
		"r1/units/docker.service.log":       "said hello",
		"r1/units/" + host.Unit + ".status": "exit status 3",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s: no %q in %q", name, want, files[name])
		}
	}
	for name, text := range files {
		if strings.Contains(text, secret) {
			t.Errorf("%s holds a secret: %s", name, text)
		}
	}
}

// TestOddNames: a file whose name not every system can have does not cost the plugin the whole archive.
func TestOddNames(t *testing.T) {
	c := collector(t, "")
	dir := t.TempDir()
	var changes []host.Change
	for _, name := range []string{`dev-disk-by\x2duuid.mount`, "registry:5000", "a b\x1b[2J\n", "größe", strings.Repeat("x", 200)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("now\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		changes = append(changes, host.Change{Path: path})
	}
	memo, err := json.Marshal(changes)
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(c.Layout.RunDir(c.Run), journal.Identity{Run: "r1", Node: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(journal.Record{Kind: journal.KindIntent, Phase: protocol.PhasePrepare, Step: "b", Memo: memo}); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.Write(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	files, err := untrusted.Archive(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	odd := 0
	for _, file := range files {
		if string(file.Data) == "now\n" {
			odd++
		}
	}
	if odd != len(changes) {
		t.Errorf("%d of %d files: %+v", odd, len(changes), files)
	}
}

// TestBounded: logs without end make no archive without end.
func TestBounded(t *testing.T) {
	c := collector(t, strings.Repeat("a line that says little\n", 400_000))
	var out bytes.Buffer
	if err := c.Write(context.Background(), &out); err != nil {
		t.Fatal(err)
	}
	if _, total := read(t, out.Bytes()); total > maxTotal+1<<16 {
		t.Errorf("%d bytes", total)
	}
}

// TestDamagedJournal is in the evidence all the same.
func TestDamagedJournal(t *testing.T) {
	c := collector(t, "")
	if err := os.WriteFile(filepath.Join(c.Layout.RunDir("r1"), journal.FileName), []byte("?\n?\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.Write(context.Background(), &out); err != nil {
		t.Fatal(err)
	}
	if files, _ := read(t, out.Bytes()); files["r1/run/journal.jsonl"] != "?\n?\n" || !strings.Contains(files["r1/files/index.json"], "damaged") {
		t.Errorf("%q", files)
	}
}

func TestUnknownRun(t *testing.T) {
	c := collector(t, "")
	for _, run := range []string{"", "r2", "../runs/r1", ".."} {
		c.Run = run
		if err := c.Write(context.Background(), io.Discard); err == nil || !strings.Contains(err.Error(), "no run") {
			t.Errorf("%q: %v", run, err)
		}
	}
}
