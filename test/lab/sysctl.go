package lab

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// sharedSysctls are the settings of the machine's one kernel that a booting Debian, Docker or a kubelet sets. Those of the
// network are each node's own.
var sharedSysctls = []string{
	"fs.file-max", "fs.nr_open", "fs.inotify.*", "fs.protected_*", "fs.suid_dumpable", "fs.aio-max-nr",
	"kernel.core_pattern", "kernel.core_pipe_limit", "kernel.core_uses_pid", "kernel.keys.root_maxbytes",
	"kernel.keys.root_maxkeys", "kernel.panic", "kernel.panic_on_oops", "kernel.pid_max", "kernel.printk", "kernel.sysrq",
	"vm.max_map_count", "vm.overcommit_memory", "vm.panic_on_oom", "vm.swappiness",
}

// readSysctls returns the values of those settings by their path.
func readSysctls(names []string) map[string]string {
	values := map[string]string{}
	for _, name := range names {
		paths, _ := filepath.Glob("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		for _, path := range paths {
			if value, err := os.ReadFile(path); err == nil {
				values[path] = strings.TrimSpace(string(value))
			}
		}
	}
	return values
}

// raiseSysctl makes a number at least that large.
func raiseSysctl(name string, least int) error {
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("raise %s: %w", name, err)
	}
	if now, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && now >= least {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(least)), 0o644); err != nil {
		return fmt.Errorf("raise %s: %w", name, err)
	}
	return nil
}

// restoreSysctls writes back what differs from the given values.
func restoreSysctls(values map[string]string) error {
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(values)) {
		now, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(now)) == values[path] {
			continue
		}
		if err := os.WriteFile(path, []byte(values[path]), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("restore %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}
