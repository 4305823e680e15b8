package host

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func entry(kind byte, name string) []byte {
	length := 19 + len(name) + 1
	e := make([]byte, length)
	binary.NativeEndian.PutUint16(e[16:], uint16(length))
	e[18] = kind
	copy(e[19:], name)
	return e
}

func TestUntyped(t *testing.T) {
	typed := append(entry(unix.DT_DIR, "."), entry(unix.DT_REG, "file")...)
	for name, test := range map[string]struct {
		entries []byte
		want    bool
	}{
		"none":       {nil, false},
		"typed":      {typed, false},
		"one is not": {append(typed[:len(typed):len(typed)], entry(unix.DT_UNKNOWN, "x")...), true},
		"cut off":    {typed[:len(typed)-3], false},
		"no length":  {append(make([]byte, 18), 4), false},
	} {
		if got := untyped(test.entries); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// TestTellsTypes: the file systems that tests run on all do, and nothing is written.
func TestTellsTypes(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if tells, err := TellsTypes(dir); err != nil || !tells {
		t.Errorf("%t, %v", tells, err)
	}
	if _, err := TellsTypes(filepath.Join(dir, "none")); err == nil {
		t.Error("a directory that is not there tells types")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
}
