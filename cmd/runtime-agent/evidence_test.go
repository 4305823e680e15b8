package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEvidenceOnStandardOutput is how the plugin gets it, by an exec: nothing else is printed.
func TestEvidenceOnStandardOutput(t *testing.T) {
	var stdout bytes.Buffer
	out, finish, err := evidenceOut("-", &stdout)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte{0x1f, 0x8b}); err != nil {
		t.Fatal(err)
	}
	if err := finish(); err != nil || stdout.String() != "\x1f\x8b" {
		t.Errorf("%q, %v", stdout.String(), err)
	}
}

// TestEvidenceInAFile: it is for its owner alone, and replaces nothing.
func TestEvidenceInAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "evidence.tar.gz")
	var stdout bytes.Buffer
	_, finish, err := evidenceOut(path, &stdout)
	if err != nil {
		t.Fatal(err)
	}
	if err := finish(); err != nil || !strings.Contains(stdout.String(), path) {
		t.Error(stdout.String(), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Error(info, err)
	}
	if _, _, err := evidenceOut(path, &stdout); err == nil {
		t.Error("it was written over")
	}
}
