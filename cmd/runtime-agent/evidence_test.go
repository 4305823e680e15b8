package main

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

func TestEvidenceInALog(t *testing.T) {
	for _, size := range []int{0, 1, 768, 769, 10_000} {
		data := bytes.Repeat([]byte{0xab}, size)
		var stdout bytes.Buffer
		out, finish, err := evidenceOut("", &stdout)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := finish(); err != nil {
			t.Fatal(err)
		}
		text, begun := strings.CutPrefix(stdout.String(), protocol.EvidenceBegin+"\n")
		text, ended := strings.CutSuffix(text, protocol.EvidenceEnd+"\n")
		back, err := base64.StdEncoding.DecodeString(text) // it ignores line ends
		if !begun || !ended || err != nil || !bytes.Equal(back, data) {
			t.Errorf("%d bytes: %d back (%v)", size, len(back), err)
		}
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
