package journal

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// faulty fails the n-th call, in one of the ways in which disks do.
type faulty struct {
	*os.File
	calls, fail int
	short       bool
	err         error
}

func (f *faulty) at() bool { f.calls++; return f.calls == f.fail }

func (f *faulty) WriteAt(data []byte, at int64) (int, error) {
	if f.at() {
		n := 0
		if f.short {
			n, _ = f.File.WriteAt(data[:len(data)/2], at)
		}
		return n, f.err
	}
	return f.File.WriteAt(data, at)
}

func (f *faulty) Truncate(size int64) error {
	if f.at() {
		return f.err
	}
	return f.File.Truncate(size)
}

func (f *faulty) Sync() error {
	if f.at() {
		return f.err
	}
	return f.File.Sync()
}

// TestFailedWriteLeavesNoDamage: whichever call of a write fails, and however, the lines that were acknowledged are whole, no other
// is in between, and the next write works.
func TestFailedWriteLeavesNoDamage(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, short := range []bool{false, true} {
			for fail := 1; fail <= 12; fail++ {
				path := filepath.Join(t.TempDir(), "f")
				file, err := os.Create(path)
				if err != nil {
					t.Fatal(err)
				}
				f := &faulty{File: file, fail: fail, short: short, err: cause}
				var end int64
				want, failed := "", 0
				for _, line := range []string{"first\n", "second\n", "third\n", "fourth\n"} {
					if err := writeAt(f, end, []byte(line), true); err != nil {
						if !errors.Is(err, cause) {
							t.Errorf("error %v, want %v", err, cause)
						}
						failed++
						continue
					}
					want += line
					end += int64(len(line))
				}
				if got, err := os.ReadFile(path); err != nil || string(got[:end]) != want || failed != 1 {
					t.Errorf("call %d fails with %v: %q, want %q (%d failed)", fail, cause, got, want, failed)
				}
				_ = file.Close()
			}
		}
	}
}

// fullDisk mounts a small file system and returns its directory with what fills it up.
func fullDisk(t *testing.T) (dir string, fill func()) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("SKIPPED: a full disk cannot be tested without the right to mount one: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, func() {
		file, err := os.Create(filepath.Join(dir, "filler"))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = file.Write(make([]byte, 4096))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		_ = file.Close()
	}
}

// TestFullDisk: an append on a full disk frees space and succeeds; without any it fails and leaves the file whole.
func TestFullDisk(t *testing.T) {
	dir, fill := fullDisk(t)
	j := open(t, dir)
	events, err := OpenEvents(dir, "r1", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = events.Close() }()
	spare := filepath.Join(dir, "spare")
	if err := os.WriteFile(spare, make([]byte, 32<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	fill()
	relieved := 0
	relieve := func() bool { relieved++; return os.Remove(spare) == nil }
	j.Relieve, events.Relieve = relieve, relieve
	record := Record{Kind: KindDone, Phase: protocol.PhasePrepare, Step: "a"}
	good := 0
	for err = nil; err == nil && good < 10000; {
		if err = j.Append(record); err == nil {
			good++
		}
		_ = events.Append(protocol.Event{Phase: protocol.PhasePrepare, Log: &protocol.Log{Message: "m"}})
	}
	if !errors.Is(err, syscall.ENOSPC) || relieved < 2 || good < 100 {
		t.Fatalf("%d records, freed %d times: %v", good, relieved, err)
	}
	if _, records, err := Read(dir); err != nil || len(records) != good || len(j.Records()) != good {
		t.Errorf("%d records on disk, %d in memory, %d acknowledged: %v", len(records), len(j.Records()), good, err)
	}
}
