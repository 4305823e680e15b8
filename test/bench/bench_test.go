// Package bench measures what README promises against what people do today, and against the least that could be: images brought to
// containerd, the time that a node is out of service, and `status`. `make bench` runs it and writes the figures to
// docs/performance.md. Rivals take turns within each run, so that what else the machine does hits all of them; what is reported is each
// one's median.
package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	enableVariable = "KUBECTL_RUNTIME_BENCH"
	runsVariable   = "KUBECTL_RUNTIME_BENCH_RUNS"
	page           = "../../docs/performance.md"
)

// runs is how often each rival runs, and skips the test unless benchmarks are asked for.
func runs(t *testing.T) int {
	t.Helper()
	if os.Getenv(enableVariable) == "" {
		t.Skipf("SKIPPED: a benchmark: set %s=1, or run `make bench`", enableVariable)
	}
	count, err := strconv.Atoi(os.Getenv(runsVariable))
	if err != nil || count < 1 {
		return 5
	}
	return count
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: lab nodes need root")
	}
}

func median[T int64 | float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// span writes the range of values beside their median.
func span(values []time.Duration) string {
	return fmt.Sprintf("%.2f s (%.2f to %.2f)", median(values).Seconds(), slices.Min(values).Seconds(), slices.Max(values).Seconds())
}

func mebibytes(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// machine tells what the figures are from, and how busy it was.
func machine() string {
	model := "unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.Trim(name, " \t\n:")
				break
			}
		}
	}
	kernel, _ := exec.Command("uname", "-r").Output()
	var memory int64
	if info, err := os.ReadFile("/proc/meminfo"); err == nil {
		_, _ = fmt.Sscanf(string(info), "MemTotal: %d kB", &memory)
	}
	return fmt.Sprintf("%d × %s, %d GiB, Linux %s", runtime.NumCPU(), model, memory>>20, strings.TrimSpace(string(kernel)))
}

// load is the machine's load average over a minute.
func load() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return -1
	}
	first, _, _ := strings.Cut(string(text), " ")
	value, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return -1
	}
	return value
}

// loads notes the load at each run.
type loads []float64

func (l *loads) note() { *l = append(*l, load()) }

func (l loads) over(runs int) string {
	return fmt.Sprintf("Medians of %d interleaved runs on %s, %s. Load average of the machine during them: %.0f to %.0f on %d processors.",
		runs, time.Now().UTC().Format(time.DateOnly), machine(), slices.Min(l), slices.Max(l), runtime.NumCPU())
}

// record replaces a section of the page, which its markers frame.
func record(t *testing.T, section, text string) {
	t.Helper()
	t.Logf("%s\n%s", section, text)
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- begin "+section+" -->\n", "<!-- end "+section+" -->"
	before, rest, ok := strings.Cut(string(data), begin)
	_, after, okToo := strings.Cut(rest, end)
	if !ok || !okToo {
		t.Fatalf("%s has no section %s", page, section)
	}
	if err := os.WriteFile(filepath.Clean(page), []byte(before+begin+text+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
