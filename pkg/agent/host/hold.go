package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// HoldName is the name of the drop-ins that hold a unit. Drop-ins apply in the order of their names, whichever folder they lie in, and a
// later one can take all conditions of the earlier ones away (systemd.unit(5)): it sorts behind the names that people give theirs.
const HoldName = "zz-kubectl-runtime.conf"

// HoldBreaker is a drop-in that would take a unit's hold away: it sorts behind HoldName and resets the unit's conditions. Empty: none does.
func HoldBreaker(ctx context.Context, s Systemd, unit string) (string, error) {
	p, err := s.Show(ctx, unit, "DropInPaths")
	if err != nil {
		return "", err
	}
	for path := range strings.FieldsSeq(p["DropInPaths"]) {
		if filepath.Base(path) <= HoldName {
			continue
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, and systemd was not told yet
		}
		if err != nil {
			return "", fmt.Errorf("read drop-in of unit %s: %w", unit, err)
		}
		if resetsConditions(string(text)) {
			return path, nil
		}
	}
	return "", nil
}

// resetsConditions reports whether a unit file has a Condition…= without a value, which resets those of all kinds.
func resetsConditions(text string) bool {
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		key, value, ok := strings.Cut(line, "=")
		if section == "[Unit]" && ok && strings.HasPrefix(key, "Condition") && strings.TrimSpace(value) == "" {
			return true
		}
	}
	return false
}

// DropInObstacle says why a drop-in cannot be put into a unit's folder of drop-ins, or would apply to another unit as well: administrators
// make such a folder a symbolic link. Empty: it can. With readOnly the caller itself sees the host without the right to write, and whether
// the folder can be written to is not asked.
func DropInObstacle(s Systemd, unit string, readOnly bool) (string, error) {
	folder := filepath.Dir(s.HoldPath(unit))
	real, err := filepath.EvalSymlinks(folder)
	if errors.Is(err, fs.ErrNotExist) {
		if !Absent(folder) {
			return folder + " is a symbolic link that leads nowhere", nil
		}
		real, err = unitDir(s), nil // where it is made
	}
	if err != nil {
		return "", fmt.Errorf("look at the drop-ins of unit %s: %w", unit, err)
	}
	if info, err := os.Stat(real); err != nil {
		return "", fmt.Errorf("look at the drop-ins of unit %s: %w", unit, err)
	} else if !info.IsDir() {
		return folder + " is not a directory", nil
	}
	if err := unix.Access(real, unix.W_OK); err != nil && !readOnly {
		return fmt.Sprintf("%s cannot be written to: %v", real, err), nil
	}
	others, err := filepath.Glob(filepath.Join(unitDir(s), "*.d"))
	if err != nil {
		return "", fmt.Errorf("look at the drop-ins of unit %s: %w", unit, err)
	}
	for _, other := range others {
		if is, err := filepath.EvalSymlinks(other); err == nil && is == real && other != folder {
			return fmt.Sprintf("%s and %s are the same folder, %s", folder, other, real), nil
		}
	}
	return "", nil
}
