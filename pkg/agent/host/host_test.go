package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func plan(t *testing.T, f Files, path string, old, content []byte) Change {
	t.Helper()
	c, err := f.Plan(path, old, content)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func apply(t *testing.T, f Files, c Change) {
	t.Helper()
	for range 2 { // it can be repeated
		if err := f.Apply(c); err != nil {
			t.Fatal(err)
		}
	}
}

func TestChangeAndUndo(t *testing.T) {
	dir := t.TempDir()
	f := Files{Dir: filepath.Join(dir, "run")}
	path := filepath.Join(dir, "config")
	link := filepath.Join(dir, "link")
	write(t, path, "old\n", 0o4640)
	if err := os.Symlink("config", link); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, 12, 34); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o640|os.ModeSetuid); err != nil {
			t.Fatal(err)
		}
	}
	xattrs := unix.Lsetxattr(path, "user.note", []byte("kept"), 0) == nil
	past := time.Unix(1e9, 123456000)
	if err := os.Chtimes(path, past, past); err != nil {
		t.Fatal(err)
	}
	_, before, err := capture(path)
	if err != nil {
		t.Fatal(err)
	}

	c := plan(t, f, link, []byte("old\n"), []byte("new\n"))
	if now, _ := os.ReadFile(path); string(now) != "old\n" {
		t.Fatal("planning changed the file")
	}
	apply(t, f, c)
	content, during, err := capture(path)
	if err != nil || string(content) != "new\n" {
		t.Fatalf("%q %v", content, err)
	}
	if during.Mode != before.Mode || during.UID != before.UID || during.GID != before.GID || xattrs && string(during.Xattrs["user.note"]) != "kept" {
		t.Errorf("new file is %+v, old one was %+v", during, before)
	}
	for range 2 {
		if edited, err := f.Undo(c); err != nil || edited != "" {
			t.Fatal(edited, err)
		}
	}
	content, after, err := capture(path)
	if err != nil || string(content) != "old\n" || !after.ModTime.Equal(past) || after.Mode != before.Mode || after.UID != before.UID ||
		xattrs && string(after.Xattrs["user.note"]) != "kept" {
		t.Errorf("%q %v: %+v, was %+v", content, err, after, before)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Error("the link was replaced")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*kubectl-runtime*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestModeIsNarrowed: a file that gets a secret may be read by no more than before, and by none that it is not meant for.
func TestModeIsNarrowed(t *testing.T) {
	f := Files{Dir: t.TempDir()}
	path := filepath.Join(t.TempDir(), "f")
	for old, want := range map[os.FileMode]uint32{0o644: 0o600, 0o400: 0o400} {
		write(t, path, "old", old)
		if err := os.Chmod(path, old); err != nil {
			t.Fatal(err)
		}
		c := plan(t, f, path, []byte("old"), []byte("secret"))
		c.NewMode = 0o600
		apply(t, f, c)
		if _, now, err := capture(path); err != nil || now.Mode != want {
			t.Errorf("%o became %o, want %o (%v)", old, now.Mode, want, err)
		}
		if _, err := f.Undo(c); err != nil {
			t.Fatal(err)
		}
		if _, now, err := capture(path); err != nil || now.Mode != uint32(old) {
			t.Errorf("the undo left %o, want %o (%v)", now.Mode, old, err)
		}
	}
}

func TestAbsentFileAndDirectories(t *testing.T) {
	dir := t.TempDir()
	f := Files{Dir: filepath.Join(dir, "run")}
	path := filepath.Join(dir, "a", "b", "new.conf")
	c := plan(t, f, path, nil, []byte("x"))
	apply(t, f, c)
	if _, err := f.Undo(c); err != nil {
		t.Fatal(err)
	}
	if !Absent(filepath.Join(dir, "a")) {
		t.Error("the directories that were made are left")
	}
	apply(t, f, c)
	write(t, filepath.Join(dir, "a", "b", "other"), "", 0o600)
	if _, err := f.Undo(c); err != nil || !Absent(path) || Absent(filepath.Join(dir, "a", "b", "other")) {
		t.Errorf("someone else's file: %v", err)
	}
}

func TestEditedByOthers(t *testing.T) {
	dir := t.TempDir()
	f := Files{Dir: filepath.Join(dir, "run")}
	path := filepath.Join(dir, "config")
	write(t, path, "old", 0o600)
	if _, err := f.Plan(path, []byte("older"), []byte("new")); err == nil {
		t.Error("planned on content that was not there")
	}
	c := plan(t, f, path, []byte("old"), []byte("new"))
	write(t, path, "edited", 0o600)
	if err := f.Apply(c); err == nil || !strings.Contains(err.Error(), "edited") {
		t.Errorf("applied over an edit: %v", err)
	}
	write(t, path, "new", 0o600)
	write(t, path, "edited later", 0o600)
	edited, err := f.Undo(c)
	if err != nil || edited != path+EditedSuffix {
		t.Fatal(edited, err)
	}
	if now, _ := os.ReadFile(path); string(now) != "old" {
		t.Errorf("restored to %q", now)
	}
	if kept, _ := os.ReadFile(edited); string(kept) != "edited later" {
		t.Errorf("kept %q", kept)
	}
	// A second undo, after another edit, loses neither.
	apply(t, f, c)
	write(t, path, "edited again", 0o600)
	again, err := f.Undo(c)
	if err != nil || again != path+EditedSuffix+"-2" {
		t.Fatal(again, err)
	}
	for name, want := range map[string]string{edited: "edited later", again: "edited again", path: "old"} {
		if kept, _ := os.ReadFile(name); string(kept) != want {
			t.Errorf("%s is %q, want %q", name, kept, want)
		}
	}
	// One that was interrupted after the link takes the same name.
	apply(t, f, c)
	write(t, path, "edited a third time", 0o600)
	if err := os.Link(path, path+EditedSuffix+"-3"); err != nil {
		t.Fatal(err)
	}
	if edited, err := f.Undo(c); err != nil || edited != path+EditedSuffix+"-3" {
		t.Error(edited, err)
	}
}

func TestDamagedCopyIsNotWritten(t *testing.T) {
	dir := t.TempDir()
	f := Files{Dir: filepath.Join(dir, "run")}
	path := filepath.Join(dir, "config")
	write(t, path, "old", 0o600)
	c := plan(t, f, path, []byte("old"), []byte("new"))
	apply(t, f, c)
	write(t, c.OldCopy, "rot", 0o600)
	if _, err := f.Undo(c); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("error %v", err)
	}
	if now, _ := os.ReadFile(path); string(now) != "new" {
		t.Errorf("the file is %q", now)
	}
}

// fakeSystemctl keeps units and answers like systemctl.
type fakeSystemctl struct {
	units map[string]*UnitState
	calls []string
	// fresh: systemd has read the units' files as they are.
	fresh bool
}

func (f *fakeSystemctl) Run(ctx context.Context, name string, args ...string) (string, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		return "", fmt.Errorf("a systemctl %s that hangs would hang the agent", args[0])
	}
	line := strings.Join(append([]string{name}, args...), " ")
	f.calls = append(f.calls, line)
	unit := f.units[args[len(args)-1]]
	switch args[0] {
	case "show":
		if unit == nil {
			return "LoadState=not-found\nUnitFileState=\nActiveState=inactive\n", nil
		}
		need := map[bool]string{true: "no", false: "yes"}[f.fresh]
		return "LoadState=" + unit.Load + "\nUnitFileState=" + unit.File + "\nActiveState=" + unit.Active + "\nNeedDaemonReload=" + need + "\n", nil
	case "start", "restart":
		unit.Active = "active"
	case "stop":
		unit.Active = "inactive"
	}
	return "", nil
}

// TestHold: the condition fails as long as the drop-in is there, and nothing is left of it afterwards but what others put beside it.
func TestHold(t *testing.T) {
	ctx := context.Background()
	fake := &fakeSystemctl{}
	s := Systemd{Run: fake, Dir: t.TempDir()}
	other := filepath.Join(s.Dir, "b.service.d", "proxy.conf")
	if err := Replace(other, []byte("[Service]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Hold(ctx, "because", "a.socket", "b.service"); err != nil {
			t.Fatal(err)
		}
	}
	for _, unit := range []string{"a.socket", "b.service"} {
		text, err := os.ReadFile(s.HoldPath(unit))
		want := "# Written by kubectl-runtime: because\n[Unit]\nConditionPathExists=!" + filepath.Join(s.Dir, unit+".d", "zz-kubectl-runtime.conf") + "\n"
		if err != nil || string(text) != want {
			t.Errorf("%s: %q %v", unit, text, err)
		}
	}
	for range 2 {
		if err := s.Unhold(ctx, UnitState{Name: "a.socket"}, UnitState{Name: "b.service"}); err != nil {
			t.Fatal(err)
		}
	}
	if !Absent(filepath.Join(s.Dir, "a.socket.d")) || !Absent(s.HoldPath("b.service")) || Absent(other) {
		t.Error("something is left, or too little")
	}
	if want := slices.Repeat([]string{"systemctl daemon-reload"}, 4); !slices.Equal(fake.calls, want) {
		t.Errorf("%q", fake.calls)
	}
}

func TestExec(t *testing.T) {
	ctx := context.Background()
	if out, err := (Exec{}).Run(ctx, "sh", "-c", "echo out; echo err >&2"); err != nil || out != "out\n" {
		t.Errorf("%q %v", out, err)
	}
	_, err := Exec{}.Run(ctx, "sh", "-c", "echo out; echo why >&2; exit 3")
	var failed *CommandError
	if !errors.As(err, &failed) || !strings.Contains(failed.Output, "out\n") || !strings.HasSuffix(err.Error(), "exit status 3: why") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	started := time.Now()
	if _, err := (Exec{}).Run(ctx, "sleep", "60"); !errors.Is(err, context.DeadlineExceeded) || time.Since(started) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(started))
	}
}

func TestPoll(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	err := Poll(ctx, time.Millisecond, func(context.Context) error { return errors.New("not yet") })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("%v", err)
	}
	no := errors.New("never")
	calls := 0
	if err := Poll(context.Background(), time.Millisecond, func(context.Context) error { calls++; return Permanent(no) }); !errors.Is(err, no) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

func TestClearSocket(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"empty", "full", "full/x"} {
		if err := os.Mkdir(at(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, at("file"), "x", 0o600)
	for name, fails := range map[string]bool{"absent": false, "file": false, "empty": false, "full": true} {
		if err := ClearSocket(at(name)); (err != nil) != fails {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !Absent(at("empty")) || Absent(at("file")) || Absent(at("full/x")) {
		t.Error("not just the empty directory is gone")
	}
}

func TestStarted(t *testing.T) {
	before := time.Now()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	started, err := Started("/proc", cmd.Process.Pid)
	if err != nil || started.Before(before.Add(-2*time.Second)) || started.After(time.Now().Add(3*time.Second)) {
		t.Errorf("started %s, made at %s (%v)", started, before, err)
	}
	if _, err := Started(t.TempDir(), 1); err == nil {
		t.Error("a process that is not there has started")
	}
}

func TestProcesses(t *testing.T) {
	self, err := ReadProcess("/proc", os.Getpid())
	if err != nil || len(self.Args) == 0 || !filepath.IsAbs(self.Exe) {
		t.Fatalf("%+v %v", self, err)
	}
	found, err := FindProcesses("/proc", filepath.Base(self.Exe))
	if err != nil || !bytes.Contains([]byte(strings.Join(os.Args, " ")), []byte(filepath.Base(self.Exe))) || len(found) == 0 {
		t.Errorf("%v %v", found, err)
	}
	proc := t.TempDir()
	if err := os.Mkdir(filepath.Join(proc, "1"), 0o700); err != nil {
		t.Fatal(err)
	}
	for bounds, want := range map[string]bool{"000001ffffffffff": false, "000001fffeffffff": true} {
		write(t, filepath.Join(proc, "1", "status"), "Name:\tinit\nCapBnd:\t"+bounds+"\n", 0o600)
		if lacks, err := LacksSysResource(proc); err != nil || lacks != want {
			t.Errorf("%s: %t %v", bounds, lacks, err)
		}
	}
}

// TestKilledWhileReplacing: an agent that is killed between writing and renaming leaves the new content beside the file, and no undo may
// leave it there: /etc is to be as before.
func TestKilledWhileReplacing(t *testing.T) {
	dir := t.TempDir()
	f := Files{Dir: filepath.Join(dir, "kept")}
	path := filepath.Join(dir, "made", "file.conf")
	c, err := f.Plan(path, nil, []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func() error{
		"applied again": func() error { return f.Apply(c) },
		"undone":        func() error { _, err := f.Undo(c); return err },
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(tempPath(path), []byte("ne"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !Absent(tempPath(path)) {
			t.Errorf("%s: %s is left", name, tempPath(path))
		}
		if _, err := f.Undo(c); err != nil || !Absent(filepath.Dir(path)) {
			t.Errorf("%s: then undone: %v", name, err)
		}
	}
}

func TestUndoable(t *testing.T) {
	dir := t.TempDir()
	f := Files{Dir: filepath.Join(dir, "kept")}
	path := filepath.Join(dir, "file.conf")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := f.Plan(path, []byte("old"), []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(c); err != nil {
		t.Fatal(err)
	}
	if err := f.Undoable(c); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(c.OldCopy, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	var damaged *damagedError
	if err := f.Undoable(c); !errors.As(err, &damaged) || !strings.Contains(damaged.Hint(), c.OldCopy) || !strings.Contains(damaged.Hint(), checksum([]byte("old"))) {
		t.Errorf("a damaged copy: %v", err)
	}
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Undoable(c); err != nil {
		t.Errorf("a copy that is not needed: %v", err)
	}
}
