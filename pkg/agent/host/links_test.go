package host

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// rooted is the real systemctl for links, on a tree of its own. What it cannot do there is noted: active has the units that run.
type rooted struct {
	root   string
	active map[string]bool
	verbs  []string
}

func (r *rooted) Run(ctx context.Context, _ string, args ...string) (string, error) {
	unit := args[len(args)-1]
	r.verbs = append(r.verbs, args[0])
	switch args[0] {
	case "show":
		fragment := ""
		for _, dir := range []string{"etc/systemd/system", "usr/lib/systemd/system"} {
			path := filepath.Join(r.root, dir, unit)
			if target, err := os.Readlink(path); err == nil {
				path = filepath.Join(r.root, target)
			}
			if _, err := os.Stat(path); err == nil && fragment == "" {
				fragment = path
			}
		}
		if fragment == "" {
			return "LoadState=not-found\nUnitFileState=\nActiveState=inactive\nFragmentPath=\n", nil
		}
		state := map[bool]string{true: "active", false: "inactive"}[r.active[unit]]
		return "LoadState=loaded\nUnitFileState=" + r.isEnabled(unit) + "\nActiveState=" + state + "\nFragmentPath=" + fragment + "\n", nil
	case "start", "stop":
		r.active[unit] = args[0] == "start"
	case "enable":
		if out, err := exec.CommandContext(ctx, "systemctl", append([]string{"--root=" + r.root}, args...)...).CombinedOutput(); err != nil {
			return "", &CommandError{Command: strings.Join(args, " "), Output: string(out), Err: err}
		}
	}
	return "", nil
}

// isEnabled ends with an error for most answers.
func (r *rooted) isEnabled(unit string) string {
	out, _ := exec.Command("systemctl", "--root="+r.root, "is-enabled", unit).Output()
	return strings.TrimSpace(string(out))
}

func newRooted(t *testing.T) (*rooted, Systemd) {
	t.Helper()
	if _, err := exec.LookPath("systemctl"); err != nil {
		t.Skip("SKIPPED: this machine has no systemctl")
	}
	r := &rooted{root: t.TempDir(), active: map[string]bool{}}
	s := Systemd{Run: r, Dir: filepath.Join(r.root, "etc/systemd/system")}
	if err := errors.Join(os.MkdirAll(s.Dir, 0o755), os.MkdirAll(filepath.Join(r.root, "usr/lib/systemd/system"), 0o755)); err != nil {
		t.Fatal(err)
	}
	return r, s
}

// do runs a shell in the tree; systemctl in it is that of the tree.
func (r *rooted) do(t *testing.T, line string) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", "systemctl() { command systemctl --quiet --root="+r.root+` "$@"; }; `+line)
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

const (
	plainUnit   = `printf '[Service]\nExecStart=/bin/true\n' > `
	wantedUnit  = `printf '[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n' > `
	aliasedUnit = `printf '[Service]\nExecStart=/bin/true\n[Install]\nAlias=engine.service\nWantedBy=multi-user.target\n' > `
)

// TestLinksAreRestored: however a unit was enabled, nothing enables it afterwards, and the way back leaves every link as it was.
func TestLinksAreRestored(t *testing.T) {
	for name, test := range map[string]struct{ set, off string }{
		"enabled":             {wantedUnit + "usr/lib/systemd/system/d.service; systemctl enable d.service", "disabled"},
		"enabled by its path": {"mkdir -p opt; " + wantedUnit + "opt/d.service; systemctl enable /opt/d.service", "linked"},
		"without [Install], wanted by hand": {
			plainUnit + "usr/lib/systemd/system/d.service; mkdir etc/systemd/system/multi-user.target.wants; ln -s /lib/systemd/system/d.service etc/systemd/system/multi-user.target.wants/", "static"},
		"with a second link":           {wantedUnit + "usr/lib/systemd/system/d.service; systemctl enable d.service; echo [Unit] > usr/lib/systemd/system/x.target; systemctl add-wants x.target d.service; systemctl add-requires x.target d.service", "disabled"},
		"links of somebody's, to /lib": {wantedUnit + "usr/lib/systemd/system/d.service; mkdir etc/systemd/system/a.target.wants; ln -s /lib/systemd/system/d.service etc/systemd/system/a.target.wants/; chown -h 12:34 etc/systemd/system/a.target.wants/d.service", "disabled"},
		"folder of links is a link":    {wantedUnit + "usr/lib/systemd/system/d.service; mkdir opt; ln -s ../../../opt etc/systemd/system/multi-user.target.wants; systemctl enable d.service", "disabled"},
		"disabled":                     {wantedUnit + "usr/lib/systemd/system/d.service", "disabled"},
		"with another name for it":     {aliasedUnit + "usr/lib/systemd/system/d.service; systemctl enable d.service", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newRooted(t)
			r.do(t, test.set)
			r.active["d.service"] = true
			before := tree(t, r.root)
			was, err := s.State(t.Context(), "d.service")
			if err != nil {
				t.Fatal(err)
			}
			memo, err := json.Marshal(was) // through a journal
			if err := errors.Join(err, json.Unmarshal(memo, &was)); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := errors.Join(s.RemoveLinks(was.Links), s.Stop(t.Context(), "d.service")); err != nil {
					t.Fatal(err)
				}
			}
			if is := r.isEnabled("d.service"); test.off != "" && is != test.off {
				t.Errorf("afterwards it is %q, want %q", is, test.off)
			}
			if out, err := exec.Command("find", s.Dir+"/", "-path", "*.*s/d.service").Output(); err != nil || len(out) > 0 {
				t.Errorf("something wants it: %s (%v)", out, err)
			}
			for range 2 {
				if err := s.Restore(t.Context(), was); err != nil {
					t.Fatal(err)
				}
			}
			if now := tree(t, r.root); now != before {
				t.Errorf("before:\n%s\nafterwards:\n%s", before, now)
			}
			if !r.active["d.service"] {
				t.Error("it does not run")
			}
		})
	}
}

// TestMadeLinksGo: what has a unit come up at boot goes with the undo, and nothing else.
func TestMadeLinksGo(t *testing.T) {
	for name, test := range map[string]struct{ set, on string }{
		"disabled":               {wantedUnit + "usr/lib/systemd/system/d.service", "etc/systemd/system/multi-user.target.wants/d.service"},
		"without [Install]":      {plainUnit + "usr/lib/systemd/system/d.service", "etc/systemd/system/multi-user.target.wants/d.service"},
		"linked by its path":     {"mkdir opt; " + wantedUnit + "opt/d.service; systemctl link /opt/d.service", "etc/systemd/system/multi-user.target.wants/d.service"},
		"wanted by another":      {plainUnit + "usr/lib/systemd/system/d.service; echo [Unit] > usr/lib/systemd/system/x.target; systemctl add-wants x.target d.service", "etc/systemd/system/multi-user.target.wants/d.service"},
		"required, by [Install]": {`printf '[Install]\nRequiredBy=a.target\n' > usr/lib/systemd/system/d.service`, "etc/systemd/system/a.target.requires/d.service"},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := newRooted(t)
			// systemctl, too, leaves the folder of a target where there is anything else in it.
			r.do(t, "mkdir etc/systemd/system/multi-user.target.wants etc/systemd/system/a.target.requires; "+test.set)
			before := tree(t, r.root)
			was, err := s.State(t.Context(), "d.service")
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				links, err := s.BootLinks(t.Context(), "d.service")
				if err := errors.Join(err, s.MakeLinks(links)); err != nil {
					t.Fatal(err)
				}
			}
			if target, err := os.Readlink(filepath.Join(r.root, test.on)); err != nil || !strings.HasSuffix(target, "/d.service") {
				t.Errorf("the link leads to %q: %v", target, err)
			}
			for range 2 {
				if err := s.Restore(t.Context(), was); err != nil {
					t.Fatal(err)
				}
			}
			if now := tree(t, r.root); now != before {
				t.Errorf("before:\n%s\nafterwards:\n%s", before, now)
			}
		})
	}
	r, s := newRooted(t)
	if links, err := s.BootLinks(t.Context(), "gone.service"); err != nil || len(links) > 0 {
		t.Errorf("of no unit: %v, %v", links, err)
	}
	r.do(t, wantedUnit+"usr/lib/systemd/system/d.service; systemctl enable d.service")
	if err := Disable(s, "d.service"); err != nil || r.isEnabled("d.service") != "disabled" {
		t.Errorf("%v: it is %s", err, r.isEnabled("d.service"))
	}
}

// TestRestoreAfterSystemctl: earlier agents had systemctl disable a unit. Their links get the text that they had, and a unit of which
// they recorded none is enabled by systemctl.
func TestRestoreAfterSystemctl(t *testing.T) {
	for _, recorded := range []bool{true, false} {
		r, s := newRooted(t)
		r.do(t, wantedUnit+"usr/lib/systemd/system/d.service; systemctl enable d.service")
		was, err := s.State(t.Context(), "d.service")
		if err != nil {
			t.Fatal(err)
		}
		if recorded {
			link := filepath.Join(s.Dir, wantedBy, "d.service")
			was.Links = map[string]string{link: "/lib/systemd/system/d.service"}
			if err := errors.Join(os.Remove(link), os.Symlink(was.Links[link], link)); err != nil {
				t.Fatal(err)
			}
		} else {
			was.Links = nil
		}
		before := tree(t, s.Dir)
		r.do(t, "systemctl disable d.service")
		for range 2 {
			if err := s.Restore(t.Context(), was); err != nil {
				t.Fatal(err)
			}
		}
		if now := tree(t, s.Dir); now != before {
			t.Errorf("recorded %t, before:\n%s\nafterwards:\n%s", recorded, before, now)
		}
	}
}

// TestRestoreRunning: a unit that ran runs again, one that did not does not, and one that was not there is left alone.
func TestRestoreRunning(t *testing.T) {
	r, s := newRooted(t)
	r.do(t, plainUnit+"usr/lib/systemd/system/d.service")
	for _, ran := range []bool{true, false} {
		for _, runs := range []bool{true, false} {
			r.active["d.service"] = ran
			was, err := s.State(t.Context(), "d.service")
			if err != nil {
				t.Fatal(err)
			}
			r.active["d.service"] = runs
			if err := s.Restore(t.Context(), was); err != nil || r.active["d.service"] != ran {
				t.Errorf("ran %t, ran later %t: runs %t: %v", ran, runs, r.active["d.service"], err)
			}
		}
	}
	r.verbs = nil
	if err := s.Restore(t.Context(), UnitState{Name: "none.service", Load: "not-found"}); err != nil || len(r.verbs) > 0 {
		t.Errorf("unit that was not there: %v %v", err, r.verbs)
	}
}
