package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// nodeCgroups returns the folder that is to be a node's cgroup root in every hierarchy of this machine: a child of the
// cgroup that this process is in. Nodes that shared the machine's root would share /kubepods and /docker, too.
func nodeCgroups(node string) ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find own cgroup: %w", err)
	}
	dirs := cgroupDirs(string(mounts), string(own), "kubectl-runtime-lab-"+node)
	if len(dirs) == 0 {
		return nil, errors.New("find cgroup hierarchies: none is mounted")
	}
	return dirs, nil
}

// cgroupDirs is nodeCgroups over the text of /proc/self/mountinfo and /proc/self/cgroup. A machine on cgroup v2 alone has one
// hierarchy; there the child goes below its root, since a v2 cgroup with processes cannot hand controllers down.
func cgroupDirs(mountinfo, own, child string) []string {
	paths := map[string]string{}
	for line := range strings.Lines(own) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for controller := range strings.SplitSeq(f[1], ",") {
				paths[controller] = f[2]
			}
		}
	}
	var dirs []string
	v1 := false
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		sep := len(f)
		for i := range f {
			if f[i] == "-" {
				sep = i
			}
		}
		if sep+3 >= len(f) {
			continue
		}
		mount, kind, options := f[4], f[sep+1], f[sep+3]
		switch kind {
		case "cgroup":
			v1 = true
			for option := range strings.SplitSeq(options, ",") {
				if path, ok := paths[option]; ok {
					dirs = append(dirs, filepath.Join(mount, path, child))
					break
				}
			}
		case "cgroup2":
			dirs = append(dirs, filepath.Join(mount, paths[""], child))
		}
	}
	if !v1 && len(dirs) == 1 {
		return []string{filepath.Join("/sys/fs/cgroup", child)}
	}
	return dirs
}

// makeCgroups makes those folders, each with what a process needs before it can move in.
func makeCgroups(dirs []string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
			if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(value))) == 0 {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
				return fmt.Errorf("make cgroup: %w", err)
			}
		}
	}
	if len(dirs) == 1 { // v2 alone: hand every controller down
		controllers, err := os.ReadFile(filepath.Join(filepath.Dir(dirs[0]), "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		for controller := range strings.FieldsSeq(string(controllers)) {
			if err := os.WriteFile(filepath.Join(filepath.Dir(dirs[0]), "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil {
				return fmt.Errorf("hand cgroup controller %s down: %w", controller, err)
			}
		}
	}
	return nil
}

// removeCgroups kills what still runs in those cgroups and removes them, deepest first.
func removeCgroups(dirs []string, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for {
		var last error
		for _, dir := range dirs {
			if err := removeCgroup(dir); err != nil {
				last = err
			}
		}
		if last == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup: %w", last)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// thaw lets the processes of a frozen cgroup see their SIGKILL: a runc that is killed while it changes a container leaves it frozen.
func thaw(dir string) {
	for file, value := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
		if path := filepath.Join(dir, file); exists(path) {
			_ = os.WriteFile(path, []byte(value), 0o644) // the root of a hierarchy takes neither
		}
	}
}

// freezeCgroups stops all that runs in those cgroups. What thaws them is removeCgroups.
func freezeCgroups(dirs []string) {
	for _, dir := range dirs {
		for file, value := range map[string]string{"freezer.state": "FROZEN", "cgroup.freeze": "1"} {
			if path := filepath.Join(dir, file); exists(path) {
				_ = os.WriteFile(path, []byte(value), 0o644) // the root of a hierarchy takes neither
			}
		}
	}
}

// killCgroups sends SIGKILL to all that runs in those cgroups.
func killCgroups(dirs []string) {
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				for _, pid := range cgroupPIDs(path) {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			return nil
		})
	}
}

func removeCgroup(dir string) error {
	var all []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if entry.IsDir() {
			all = append(all, path)
			thaw(path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var last error
	for i := len(all) - 1; i >= 0; i-- {
		for _, pid := range cgroupPIDs(all[i]) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err := os.Remove(all[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			last = err
		}
	}
	return last
}

func cgroupPIDs(dir string) []int {
	f, err := os.Open(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	defer f.Close()
	var pids []int
	for s := bufio.NewScanner(f); s.Scan(); {
		var pid int
		if _, err := fmt.Sscan(s.Text(), &pid); err == nil && pid > 1 {
			pids = append(pids, pid)
		}
	}
	return pids
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
