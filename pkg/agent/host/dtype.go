package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// TellsTypes reports whether a directory's file system stores the types of entries beside their names (d_type in getdents64(2)), which
// overlayfs needs of its upper directories. xfs does unless it was made with ftype=0. It only reads.
func TellsTypes(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, fmt.Errorf("look for types of entries: %w", err)
	}
	defer func() { _ = d.Close() }()
	buffer := make([]byte, 8<<10)
	for {
		n, err := unix.Getdents(int(d.Fd()), buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("look for types of entries in %s: %w", dir, err)
		}
		if n == 0 {
			return true, nil
		}
		if untyped(buffer[:n]) {
			return false, nil
		}
	}
}

// untyped looks for an entry without a type in what getdents64 returned: inode and offset (8 bytes each), length (2), type (1), name.
func untyped(entries []byte) bool {
	const lengthAt, typeAt = 16, 18
	for len(entries) > typeAt {
		if entries[typeAt] == unix.DT_UNKNOWN {
			return true
		}
		length := int(binary.NativeEndian.Uint16(entries[lengthAt:]))
		if length <= typeAt || length > len(entries) {
			return false
		}
		entries = entries[length:]
	}
	return false
}
