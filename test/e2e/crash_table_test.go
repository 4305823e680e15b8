package e2e

import (
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

// productOf names the sources of the product by their content, which a commit that changes only tests and documents does not change. It is
// empty where they differ from the commit.
func productOf(t *testing.T) string {
	t.Helper()
	git := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = "../.."
		out, err := cmd.Output()
		if err != nil {
			t.Logf("every cell is tried: git %s: %v", strings.Join(args, " "), err)
			return "?"
		}
		return string(out)
	}
	sources := []string{"cmd", "pkg", "go.mod"}
	if git(append([]string{"status", "--porcelain", "--"}, sources...)...) != "" {
		return ""
	}
	var trees []string
	for _, source := range sources {
		trees = append(trees, strings.TrimSpace(git("rev-parse", "HEAD:"+source)))
	}
	return strings.Join(trees, " ")
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
