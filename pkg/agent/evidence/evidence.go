// Package evidence gathers what a person needs to find out why a run failed into one archive: its journal, events and specs, the files
// that it changed as they were, as they were to be and as they are, and what the units say. Secrets are taken out; see pkg/redact.
// It changes nothing, and what cannot be read is noted in the archive instead of failing it. The agent's command line calls it.
package evidence

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/redact"
)

const (
	// maxItem and maxTotal bound one file and all of them, in bytes before compression.
	maxItem  = 1 << 20
	maxTotal = 8 << 20
	// logLines is how much of each unit's log is taken.
	logLines       = 2000
	commandTimeout = 20 * time.Second
)

// units are those whose state and log tell what happened.
var units = []string{"kubelet.service", "docker.service", "cri-docker.service", "containerd.service", host.Unit}

// Collector gathers the evidence of one run.
type Collector struct {
	Layout unit.Layout
	Run    string
	Runner host.Runner
	Now    func() time.Time
	// Extra are further files of the archive, by name.
	Extra map[string][]byte

	archive *tar.Writer
	total   int
}

// Write writes the archive, a tar.gz. Its error is that of the writer, or of a run that this host does not know.
func (c *Collector) Write(ctx context.Context, out io.Writer) error {
	dir := c.Layout.RunDir(c.Run)
	if strings.Trim(c.Run, ".") == "" || c.Run != filepath.Base(c.Run) || host.Absent(dir) {
		return fmt.Errorf("gather evidence: this host has no run %q", c.Run)
	}
	zip := gzip.NewWriter(out)
	c.archive = tar.NewWriter(zip)
	var errs []error
	for _, name := range sortedKeys(c.Extra) {
		errs = append(errs, c.add(name, c.Extra[name]))
	}
	own, _ := filepath.Glob(filepath.Join(dir, "*.json*")) // the pattern is well-formed
	for _, path := range own {
		errs = append(errs, c.addFile("run/"+plainName(filepath.Base(path)), path))
	}
	errs = append(errs, c.addUnits(ctx), c.addChanges(dir))
	errs = append(errs, c.archive.Close(), zip.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("gather evidence: %w", err)
	}
	return nil
}

func sortedKeys(m map[string][]byte) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// addFile adds the end of a file: of a log it is what tells.
func (c *Collector) addFile(name, path string) error {
	data, err := readEnd(path)
	if err != nil {
		data = []byte("cannot be read: " + err.Error() + "\n")
	}
	return c.add(name, data)
}

func readEnd(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("it is not a regular file but %s", info.Mode().Type())
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	from := max(0, info.Size()-2*maxItem)
	data, err := io.ReadAll(io.NewSectionReader(file, from, 2*maxItem))
	if from > 0 {
		_, data, _ = bytes.Cut(data, []byte("\n")) // half a line would show a value without its key
	}
	return data, err
}

// add redacts before it cuts, so that no secret loses the key that it is known by, and lies in the archive for that.
func (c *Collector) add(name string, data []byte) error {
	if !utf8.Valid(data) {
		data = fmt.Appendf(nil, "%d bytes that are not text\n", len(data))
	}
	if from := len(data) - 2*maxItem; from > 0 {
		_, data, _ = bytes.Cut(data[from:], []byte("\n"))
	}
	data = redact.Text(data)
	room := max(0, min(maxItem, maxTotal-c.total))
	if cut := len(data) - room; cut > 0 {
		data = append(fmt.Appendf(nil, "[%d bytes left out]\n", cut), data[cut:]...)
	}
	c.total += len(data)
	header := &tar.Header{Name: c.Run + "/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: c.Now()}
	if err := c.archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := c.archive.Write(data)
	return err
}

func (c *Collector) addUnits(ctx context.Context) error {
	var errs []error
	for _, name := range units {
		errs = append(errs,
			c.addOutput(ctx, "units/"+name+".status", "systemctl", "status", "--no-pager", "--full", "--lines=0", "--", name),
			c.addOutput(ctx, "units/"+name+".files", "systemctl", "cat", "--no-pager", "--", name),
			c.addOutput(ctx, "units/"+name+".log", "journalctl", "--no-pager", "--quiet", fmt.Sprintf("--lines=%d", logLines), "--output=short-iso", "--unit="+name))
	}
	return errors.Join(errs...)
}

// addOutput adds what a program says; systemctl exits non-zero for a unit that is down.
func (c *Collector) addOutput(ctx context.Context, name, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := c.Runner.Run(ctx, program, args...)
	var failed *host.CommandError
	if errors.As(err, &failed) {
		out = failed.Output + "\n" + failed.Err.Error() + "\n"
	} else if err != nil {
		out += err.Error() + "\n"
	}
	return c.add(name, []byte(strings.ToValidUTF8(out, "?")))
}

// change is what the archive's index says of a changed file.
type change struct {
	Path   string     `json:"path"`
	Old    host.State `json:"old"`
	Before string     `json:"before,omitempty"`
	ToBe   string     `json:"toBe,omitempty"`
	Now    string     `json:"now,omitempty"`
}

// addChanges adds each file that the journal says was changed: before, as it was to be, and now.
func (c *Collector) addChanges(dir string) error {
	_, records, err := journal.Read(dir)
	if err != nil {
		return c.add("files/index.json", []byte("the journal tells of no files: "+err.Error()+"\n"))
	}
	var errs []error
	var index []change
	for _, r := range records {
		if r.Kind != journal.KindIntent || len(r.Memo) == 0 {
			continue
		}
		for _, found := range changesIn(r.Memo) {
			if slices.ContainsFunc(index, func(have change) bool { return have.Path == found.Path }) {
				continue
			}
			entry := change{Path: found.Path, Old: found.Old}
			base := fmt.Sprintf("files/%02d-%s", len(index)+1, plainName(filepath.Base(found.Path)))
			for _, version := range []struct {
				name *string
				what string
				path string
			}{{&entry.Before, "before", found.OldCopy}, {&entry.ToBe, "to-be", found.NewCopy}, {&entry.Now, "now", found.Path}} {
				if version.path == "" || version.what == "now" && absent(version.path) {
					continue
				}
				*version.name = base + "." + version.what
				errs = append(errs, c.addFile(*version.name, version.path))
			}
			index = append(index, entry)
		}
	}
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(append(errs, c.add("files/index.json", append(data, '\n')))...)
}

// maxName bounds a file's name in the archive, in bytes.
const maxName = 100

// plainName is a file's name as every system can have it: the names of units hold backslashes, and those of certs.d colons. The plugin takes
// no other. The index has the path as it is.
func plainName(name string) string {
	name = strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._-@", r) {
			return r
		}
		return '_'
	}, name)
	return name[:min(len(name), maxName)]
}

func absent(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// changesIn finds the host.Changes in a step's memo, wherever it keeps them.
func changesIn(memo json.RawMessage) []host.Change {
	memo = bytes.TrimSpace(memo)
	var changes []host.Change
	if list := []json.RawMessage(nil); json.Unmarshal(memo, &list) == nil {
		for _, item := range list {
			changes = append(changes, changesIn(item)...)
		}
		return changes
	}
	fields := map[string]json.RawMessage{}
	if json.Unmarshal(memo, &fields) != nil {
		return nil
	}
	var found host.Change
	if _, ok := fields["old"]; ok && json.Unmarshal(memo, &found) == nil && filepath.IsAbs(found.Path) {
		return []host.Change{found}
	}
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		changes = append(changes, changesIn(fields[name])...)
	}
	return changes
}
