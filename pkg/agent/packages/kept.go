package packages

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// Kept is a file that Keep wrote, by its name in the directory.
type Kept struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

// CheckKept returns an error if one of the files in dir is not as it was when it was kept.
func CheckKept(dir string, files []Kept) error {
	for _, file := range files {
		path := filepath.Join(dir, file.Name)
		sum, err := checksum(path)
		if err != nil {
			return fmt.Errorf("check the kept package: %w", err)
		}
		if sum != file.SHA256 {
			return &damagedError{path, file.SHA256}
		}
	}
	return nil
}

type damagedError struct{ path, sum string }

func (e *damagedError) Error() string { return fmt.Sprintf("the kept package %s is damaged", e.path) }

// Hint says what a person can do.
func (e *damagedError) Hint() string {
	return fmt.Sprintf("put the package file whose SHA-256 is %s at %s, then try again", e.sum, e.path)
}

func checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	_, err = io.Copy(hash, f)
	return hex.EncodeToString(hash.Sum(nil)), errors.Join(err, f.Close())
}

// synced is a manager whose changes are on the disk when they are done: rpm does not write files out by itself, nor does dpkg where an
// administrator has set force-unsafe-io.
type synced struct{ Manager }

func (s synced) Install(ctx context.Context, packages []Package) error {
	return syncAfter(s.Manager.Install(ctx, packages))
}

func (s synced) Restore(ctx context.Context, dir string, packages []Package) error {
	return syncAfter(s.Manager.Restore(ctx, dir, packages))
}

func (s synced) Remove(ctx context.Context, names []string, purge bool) error {
	return syncAfter(s.Manager.Remove(ctx, names, purge))
}

func syncAfter(err error) error {
	if err != nil {
		return err
	}
	return host.SyncFileSystems("/", "/usr", "/etc", "/opt", "/var", "/var/lib")
}
