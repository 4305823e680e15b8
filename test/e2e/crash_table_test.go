package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// failedCell is what a row says of a cell that failed.
const failedCell = "FAILED"

// row is how a cell went.
type row struct {
	cell          cell
	outcome, then string
	took          time.Duration
}

func (r row) String() string {
	what, when, _ := strings.Cut(r.cell.String(), " | ")
	return fmt.Sprintf("| %s | %s | %s | %s | %d s |\n", what, when, r.outcome, r.then, int(r.took.Seconds()))
}

// table holds the rows of a matrix, of this run and of earlier ones of the same product. It is kept in bin/, so that a run that was
// interrupted resumes: cells that passed are not tried again.
type table struct {
	// path is where it is kept; beside it the rows are in Markdown. Empty: nowhere.
	path string

	mu sync.Mutex
	// Product is the state of the sources that the rows are of.
	Product string
	// Rows are by cell.
	Rows map[string]string
}

// openTable reads bin/crash-matrix-NAME.json, where NAME has the disks' file system, too, if it is not the default. Rows of another product
// are dropped.
func openTable(t *testing.T, name string) *table {
	t.Helper()
	if kind := os.Getenv("KUBECTL_RUNTIME_LAB_FS"); kind != "" && kind != "ext4" {
		name += "-" + kind
	}
	m := &table{path: filepath.Join("../../bin", "crash-matrix-"+name+".json")}
	data, err := os.ReadFile(m.path)
	if err == nil {
		err = json.Unmarshal(data, m)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read the table of an earlier run: %v", err)
	}
	if product := productOf(t); m.Product != product || product == "" {
		m.Product, m.Rows = product, nil
	}
	return m
}

// productOf names, by their content, the sources that run in a cell: the agent's, those that switch one node, and go.mod. A change of tests, of
// documents, or of what only prints does not change it. It is empty where the sources differ from the commit.
func productOf(t *testing.T) string {
	t.Helper()
	output := func(program string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Dir = "../.."
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("which product is this? %s %s: %v", program, strings.Join(args, " "), err)
		}
		return strings.TrimSpace(string(out))
	}
	const ours = "{{with .Module}}{{if .Main}}{{$.Dir}}{{end}}{{end}}"
	dirs := strings.Fields(output("go", "list", "-deps", "-f", ours, "./cmd/runtime-agent", "./pkg/nodeswitch"))
	if output("git", append([]string{"status", "--porcelain", "--", "go.mod"}, dirs...)...) != "" {
		t.Log("every cell is tried: the sources are not committed")
		return ""
	}
	sum := sha256.New()
	for line := range strings.Lines(output("git", append([]string{"ls-files", "--stage", "--", "go.mod"}, dirs...)...) + "\n") {
		if _, file, _ := strings.Cut(strings.TrimSpace(line), "\t"); !strings.HasSuffix(file, "_test.go") {
			_, _ = fmt.Fprint(sum, line)
		}
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func (m *table) passed(x cell) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	text, ok := m.Rows[x.String()]
	return ok && !strings.Contains(text, failedCell)
}

// add adds a row, and writes the table.
func (m *table) add(r row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Rows == nil {
		m.Rows = map[string]string{}
	}
	m.Rows[r.cell.String()] = r.String()
	if m.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(m.path+".tmp", data, 0o644); err != nil {
		return err
	}
	return errors.Join(os.Rename(m.path+".tmp", m.path), os.WriteFile(strings.TrimSuffix(m.path, "json")+"md", []byte(m.markdown()), 0o644))
}

func (m *table) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.markdown()
}

func (m *table) markdown() string {
	rows := make([]string, 0, len(m.Rows))
	for _, text := range m.Rows {
		rows = append(rows, text)
	}
	slices.Sort(rows)
	return "| what | when | command | then | took |\n|---|---|---|---|---|\n" + strings.Join(rows, "")
}
