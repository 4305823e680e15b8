package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A unit comes up at boot by links in the folders of units that want or require it (systemd.unit(5)). The agent makes and removes these links
// itself: systemctl disable also removes what systemctl enable does not make again, such as a unit that was enabled by its path, or a
// link that an administrator made.

// wantedBy is the link that a unit gets whose own file asks for none.
const wantedBy = "multi-user.target.wants"

// linksOf are the links in other units' folders by which a unit is wanted or required, and the owners of those that are not root's.
func linksOf(s Systemd, unit string) (links map[string]string, owners map[string][2]int, err error) {
	for _, folders := range []string{"*.wants", "*.requires", "*.upholds"} {
		found, err := filepath.Glob(filepath.Join(unitDir(s), folders, unit))
		if err != nil {
			return nil, nil, fmt.Errorf("find links of unit %s: %w", unit, err)
		}
		for _, path := range found {
			target, err := os.Readlink(path)
			if err != nil {
				continue // not a link
			}
			if links == nil {
				links, owners = map[string]string{}, map[string][2]int{}
			}
			links[path] = target
			if owner := ownerOf(path); owner != [2]int{} {
				owners[path] = owner
			}
		}
	}
	return links, owners, nil
}

func ownerOf(path string) [2]int {
	info, err := os.Lstat(path)
	if err != nil {
		return [2]int{}
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return [2]int{}
	}
	return [2]int{int(stat.Uid), int(stat.Gid)}
}

// BootLinks are the links with which a unit comes up at boot, with where they point: those that its own file asks for by WantedBy= and
// RequiredBy= in [Install], or that of multi-user.target. There are none of a unit that systemd does not know.
func (s Systemd) BootLinks(ctx context.Context, unit string) (map[string]string, error) {
	p, err := s.Show(ctx, unit, "FragmentPath")
	if err != nil || p["FragmentPath"] == "" {
		return nil, err
	}
	text, err := os.ReadFile(p["FragmentPath"])
	if err != nil {
		return nil, fmt.Errorf("read unit %s: %w", unit, err)
	}
	names := installLinks(string(text), unit)
	if len(names) == 0 {
		names = []string{wantedBy + "/" + unit}
	}
	links := map[string]string{}
	for _, name := range names {
		links[filepath.Join(unitDir(s), name)] = p["FragmentPath"]
	}
	return links, nil
}

// installLinks are the names of the links that an [Install] section asks for.
func installLinks(text, unit string) []string {
	var links []string
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		key, value, _ := strings.Cut(line, "=")
		folder, ok := map[string]string{"WantedBy": ".wants", "RequiredBy": ".requires"}[strings.TrimSpace(key)]
		if section != "[Install]" || !ok {
			continue
		}
		for by := range strings.FieldsSeq(value) {
			if !strings.Contains(by, "/") {
				links = append(links, by+folder+"/"+unit)
			}
		}
	}
	return links
}

// MakeLinks makes links, lastingly. What is there already stays: systemd goes by a link's name, wherever it points.
func (s Systemd) MakeLinks(links map[string]string) error {
	for _, path := range slices.Sorted(maps.Keys(links)) {
		if !Absent(path) {
			continue
		}
		if err := placeLink(path, links[path], [2]int{os.Getuid(), os.Getgid()}); err != nil {
			return fmt.Errorf("make link %s: %w", path, err)
		}
	}
	return syncLinks(s, links)
}

// EnsureEnabled has a unit with this file come up at boot. systemd reads its files again only if it has to, which takes a second on a
// busy node.
func EnsureEnabled(ctx context.Context, s Systemd, unit, file string) error {
	if err := s.MakeLinks(map[string]string{filepath.Join(unitDir(s), wantedBy, unit): file}); err != nil {
		return err
	}
	if stale, err := s.Stale(ctx, unit); err == nil && !stale {
		return nil
	}
	return s.DaemonReload(ctx)
}

// Disable removes all links by which a unit comes up at boot.
func Disable(s Systemd, unit string) error {
	links, _, err := linksOf(s, unit)
	if err != nil {
		return err
	}
	return s.RemoveLinks(links)
}

// RemoveLinks removes links, lastingly. One that is gone is fine; what is no link any more stays.
func (s Systemd) RemoveLinks(links map[string]string) error {
	for path := range links {
		if _, err := os.Readlink(path); err != nil {
			continue
		}
		if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove link %s: %w", path, err)
		}
	}
	return syncLinks(s, links)
}

// RestoreLinks gives units the links that were recorded, with their text and owner. Those that were made since are removed.
func (s Systemd) RestoreLinks(units ...UnitState) error {
	for _, was := range units {
		for path, target := range was.Links {
			if is, err := os.Readlink(path); err == nil && is == target && ownerOf(path) == was.Owners[path] {
				continue
			}
			if err := placeLink(path, target, was.Owners[path]); err != nil {
				return fmt.Errorf("restore link %s: %w", path, err)
			}
		}
		if err := syncLinks(s, was.Links); err != nil {
			return err
		}
		if was.File == "enabled" && len(was.Links) == 0 {
			continue // by its vendor's links, or those that an earlier agent did not record
		}
		now, _, err := linksOf(s, was.Name)
		if err != nil {
			return err
		}
		maps.DeleteFunc(now, func(path, _ string) bool { _, had := was.Links[path]; return had })
		if err := s.RemoveLinks(now); err != nil {
			return err
		}
	}
	return nil
}

// placeLink puts a link at path in one instant, in place of another one.
func placeLink(path, target string, owner [2]int) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // folders of units are for all to read
		return err
	}
	if err := removeTemp(path); err != nil {
		return err
	}
	temp := tempPath(path)
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	if ownerOf(temp) != owner {
		if err := os.Lchown(temp, owner[0], owner[1]); err != nil {
			return err
		}
	}
	return os.Rename(temp, path)
}

// syncLinks makes it last that links are there, or gone, in the folders that hold them.
func syncLinks(s Systemd, links map[string]string) error {
	dirs := map[string]bool{}
	for path := range links {
		dirs[filepath.Dir(path)], dirs[unitDir(s)] = true, true
	}
	for dir := range dirs {
		if err := SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
