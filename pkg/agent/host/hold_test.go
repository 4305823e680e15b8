package host

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// dropIns is systemctl show of a unit with these drop-ins.
type dropIns []string

func (d dropIns) Run(context.Context, string, ...string) (string, error) {
	return "DropInPaths=" + strings.Join(d, " ") + "\n", nil
}

// TestHoldBreaker: only what systemd reads behind our drop-in and what resets conditions takes the hold away.
func TestHoldBreaker(t *testing.T) {
	const reset = "[Unit]\nConditionPathExists=\n"
	for _, test := range []struct {
		name, text string
		breaks     bool
	}{
		{"10-kubeadm.conf", reset, false},
		{"zz-admin.conf", reset, false},
		{"zzz-admin.conf", reset, true},
		{"zzz-admin.conf", "# by hand\n[Unit]\nAfter=x\nConditionVirtualization = \n", true},
		{"zzz-admin.conf", "[Unit]\nConditionPathExists=/etc/x\n", false},
		{"zzz-admin.conf", "[Service]\nExecStart=\nConditionPathExists=\n", false},
		{"zzz-admin.conf", "[Unit]\n#ConditionPathExists=\n", false},
	} {
		path := filepath.Join(t.TempDir(), test.name)
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := Systemd{Run: dropIns{"/etc/systemd/system/kubelet.service.d/" + HoldName, path, path + ".gone"}}
		got, err := HoldBreaker(t.Context(), s, "kubelet.service")
		if want := map[bool]string{true: path}[test.breaks]; err != nil || got != want {
			t.Errorf("%s %q: %q, %v", test.name, test.text, got, err)
		}
	}
}

// tree lists what is below a directory: paths, types, modes, owners and where links lead.
func tree(t *testing.T, root string) string {
	t.Helper()
	out, err := exec.Command("find", root, "-printf", "%P %y %m %U:%G %l\\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestHoldLeavesFolders: an administrator's folder of drop-ins stays, also as a link and also when it is empty.
func TestHoldLeavesFolders(t *testing.T) {
	for name, set := range map[string]func(folder, other string) error{
		"no folder": func(string, string) error { return nil },
		"empty":     func(folder, _ string) error { return os.Mkdir(folder, 0o750) },
		"a link":    func(folder, other string) error { return os.Symlink(other, folder) },
		"a link to a folder with a drop-in": func(folder, other string) error {
			return errors.Join(os.WriteFile(filepath.Join(other, "10-flags.conf"), []byte("[Service]\n"), 0o600), os.Symlink(other, folder))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := Systemd{Run: &fakeSystemctl{}, Dir: filepath.Join(root, "system")}
			other := filepath.Join(root, "opt")
			err := errors.Join(os.Mkdir(s.Dir, 0o755), os.Mkdir(other, 0o755))
			if err := errors.Join(err, set(filepath.Join(s.Dir, "docker.service.d"), other)); err != nil {
				t.Fatal(err)
			}
			before := tree(t, root)
			was, err := s.State(t.Context(), "docker.service")
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := s.Hold(t.Context(), "because", "docker.service"); err != nil {
					t.Fatal(err)
				}
			}
			if Absent(s.HoldPath("docker.service")) {
				t.Error("the unit is not held")
			}
			for range 2 {
				if err := s.Unhold(t.Context(), was); err != nil {
					t.Fatal(err)
				}
			}
			if now := tree(t, root); now != before {
				t.Errorf("before:\n%s\nafterwards:\n%s", before, now)
			}
		})
	}
}

// TestDropInObstacle: a drop-in applies to one unit, and can be written.
func TestDropInObstacle(t *testing.T) {
	for name, test := range map[string]struct {
		set  string // a shell's, in the folder of units
		want string
	}{
		"no folder":           {"true", ""},
		"a folder":            {"mkdir docker.service.d kubelet.service.d", ""},
		"a link":              {"mkdir ../opt; ln -s ../opt docker.service.d", ""},
		"a link to nowhere":   {"ln -s ../opt docker.service.d", "docker.service.d is a symbolic link that leads nowhere"},
		"a file":              {"touch docker.service.d", "docker.service.d is not a directory"},
		"one for two units":   {"mkdir ../opt; ln -s ../opt docker.service.d; ln -s ../opt containerd.service.d", "containerd.service.d are the same folder, "},
		"a link to it":        {"mkdir docker.service.d; ln -s docker.service.d x.service.d", "x.service.d are the same folder, "},
		"a link to read-only": {"ln -s /proc/self docker.service.d", "/proc/"},
	} {
		t.Run(name, func(t *testing.T) {
			s := Systemd{Run: &fakeSystemctl{}, Dir: filepath.Join(t.TempDir(), "system")}
			if err := os.Mkdir(s.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("sh", "-ec", test.set)
			cmd.Dir = s.Dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			got, err := DropInObstacle(s, "docker.service", false)
			if err != nil || (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("%q, %v", got, err)
			}
			// A plan sees the whole host read-only.
			want := test.want
			if name == "a link to read-only" {
				want = ""
			}
			got, err = DropInObstacle(s, "docker.service", true)
			if err != nil || (got == "") != (want == "") || !strings.Contains(got, want) {
				t.Errorf("in a plan: %q, %v", got, err)
			}
		})
	}
}

// TestFoldersOfOthersStay: a change neither follows a link to nowhere nor removes a link that has taken the place of the folder it made.
func TestFoldersOfOthersStay(t *testing.T) {
	root := t.TempDir()
	f := Files{Dir: filepath.Join(root, "copies")}
	folder, file := filepath.Join(root, "etc", "x.d"), filepath.Join(root, "etc", "x.d", "file")
	if err := errors.Join(os.Mkdir(filepath.Dir(folder), 0o755), os.Symlink(filepath.Join(root, "opt"), folder)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Plan(file, nil, []byte("new")); err == nil || !strings.Contains(err.Error(), folder+" is a symbolic link that leads nowhere") {
		t.Errorf("error %v", err)
	}
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	c, err := f.Plan(file, nil, []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(c); err != nil {
		t.Fatal(err)
	}
	// An administrator moves the folder away.
	if err := errors.Join(os.Rename(folder, filepath.Join(root, "opt")), os.Symlink(filepath.Join(root, "opt"), folder)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := f.Undo(c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Readlink(folder); err != nil || !Absent(file) {
		t.Errorf("link %v; the file is there: %t", err, !Absent(file))
	}
}
