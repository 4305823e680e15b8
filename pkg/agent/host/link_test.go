package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "a.sock")
	for range 2 {
		if err := Link(path, "b.sock"); err != nil {
			t.Fatal(err)
		}
	}
	if is, err := os.Readlink(path); err != nil || is != "b.sock" {
		t.Errorf("%q %v", is, err)
	}
	if err := Unlink(path, "other.sock"); err != nil || Absent(path) {
		t.Errorf("a link of someone else's is gone (%v)", err)
	}
	for range 2 {
		if err := Unlink(path, "b.sock"); err != nil || !Absent(path) {
			t.Errorf("the link is left (%v)", err)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Link(path, "b.sock"); err == nil {
		t.Error("a file was replaced by a link")
	}
	if err := Unlink(path, "b.sock"); err != nil || Absent(path) {
		t.Errorf("a file is gone (%v)", err)
	}
}
