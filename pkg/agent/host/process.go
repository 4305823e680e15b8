package host

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a running program.
type Process struct {
	PID  int
	Exe  string   // the file that it runs, as the kernel names it
	Args []string // with its name
	// Cgroup is the content of /proc/<pid>/cgroup.
	Cgroup string
}

// ReadProcess reads a process from a proc file system, "/proc" on a host.
func ReadProcess(proc string, pid int) (Process, error) {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	p := Process{PID: pid}
	if len(cmdline) > 0 {
		p.Args = strings.Split(string(bytes.TrimSuffix(cmdline, []byte{0})), "\x00")
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	p.Exe = strings.TrimSuffix(exe, " (deleted)")
	cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	p.Cgroup = string(cgroup)
	return p, nil
}

// userHZ is what times in /proc/<pid>/stat are counted in (proc(5), sysconf(_SC_CLK_TCK)); every architecture of Linux that Go has
// says 100.
const userHZ = 100

// Started returns when a process started, rounded up to a second.
func Started(proc string, pid int) (time.Time, error) {
	stat, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "stat"))
	if err != nil {
		return time.Time{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	// What follows the name, which can hold anything, begins with field 3.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const startTime = 22 - 3
	if len(fields) <= startTime {
		return time.Time{}, fmt.Errorf("read process %d: its stat has %d fields", pid, len(fields))
	}
	ticks, err := strconv.ParseInt(fields[startTime], 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	system, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return time.Time{}, fmt.Errorf("read the time of the boot: %w", err)
	}
	for line := range strings.Lines(string(system)) {
		if text, ok := strings.CutPrefix(line, "btime "); ok {
			boot, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				return time.Time{}, fmt.Errorf("read the time of the boot: %w", err)
			}
			return time.Unix(boot+ticks/userHZ+1, 0), nil
		}
	}
	return time.Time{}, fmt.Errorf("read the time of the boot: %s has no btime", filepath.Join(proc, "stat"))
}

// FindProcesses lists the processes whose program is called name.
func FindProcesses(proc, name string) ([]Process, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		p, err := ReadProcess(proc, pid)
		if err != nil || len(p.Args) == 0 {
			continue // it ended, or is a kernel thread
		}
		if filepath.Base(p.Exe) == name || filepath.Base(p.Args[0]) == name {
			found = append(found, p)
		}
	}
	return found, nil
}

// capSysResource is CAP_SYS_RESOURCE (linux/capability.h).
const capSysResource = 24

// LacksSysResource reports whether the host's processes can never lower their oom_score_adj: in some virtual hosts PID 1 itself
// lacks the capability, and runc then cannot start a pod with a negative one.
func LacksSysResource(proc string) (bool, error) {
	status, err := os.ReadFile(filepath.Join(proc, "1", "status"))
	if err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(status))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "CapBnd:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return false, fmt.Errorf("read capabilities: %w", err)
			}
			return set&(1<<capSysResource) == 0, nil
		}
	}
	return false, errors.New("read capabilities: no CapBnd in the status of PID 1")
}

// MachineID returns what tells this host from a clone of its disk, empty if nothing does: its machine ID, or where that is made again
// at each boot, what the firmware calls the machine.
func MachineID() string { return machineID("/") }

func machineID(root string) string {
	etc := filepath.Join(root, "etc")
	if lastsNot(etc) {
		uuid, err := os.ReadFile(filepath.Join(root, "sys/class/dmi/id/product_uuid"))
		if text := strings.ToLower(strings.TrimSpace(string(uuid))); err == nil && text != "" {
			return "firmware-" + text
		}
		return ""
	}
	id, err := os.ReadFile(filepath.Join(etc, "machine-id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// lastsNot reports whether the machine ID is that of this boot only: systemd mounts one over a file that it cannot write
// (machine-id(5)), and live systems keep the whole of /etc in memory.
func lastsNot(etc string) bool {
	var dir, file unix.Stat_t
	if unix.Stat(etc, &dir) != nil || unix.Stat(filepath.Join(etc, "machine-id"), &file) != nil {
		return true
	}
	var fs unix.Statfs_t
	if unix.Statfs(etc, &fs) != nil {
		return true
	}
	return dir.Dev != file.Dev || fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC
}

// OSName returns the distribution's own name, as in nodeInfo.osImage.
func OSName() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return ""
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if value, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return ""
}

// Processes lists all processes but kernel threads and those that have ended.
func Processes(proc string) ([]Process, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if process, err := ReadProcess(proc, pid); err == nil && len(process.Args) > 0 {
			all = append(all, process)
		}
	}
	return all, nil
}

// ParentPID reads a process's parent, 0 if it has ended.
func ParentPID(proc string, pid int) int {
	stat, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	return parentOf(string(stat))
}

// parentOf takes the parent from a line of /proc/<pid>/stat (proc(5)): "pid (name) state ppid …", where the name can hold anything.
func parentOf(stat string) int {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return parent
}

// PIDNamespace names that of a process, empty if it has ended.
func PIDNamespace(proc, pid string) string {
	namespace, _ := os.Readlink(filepath.Join(proc, pid, "ns/pid"))
	return namespace
}

// InServiceCgroup reports whether a process with this /proc/<pid>/cgroup is in the cgroup that systemd names without a hierarchy.
func InServiceCgroup(text, cgroup string) bool {
	for line := range strings.Lines(text) {
		if fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(fields) == 3 && (fields[1] == "" || fields[1] == "name=systemd") {
			if fields[2] == cgroup || strings.HasPrefix(fields[2], cgroup+"/") {
				return true
			}
		}
	}
	return false
}

// ProcessNames is for messages.
func ProcessNames(processes []Process) string {
	var names []string
	for _, p := range processes {
		names = append(names, fmt.Sprintf("%s (pid %d)", filepath.Base(p.Args[0]), p.PID))
	}
	return strings.Join(names, ", ")
}
