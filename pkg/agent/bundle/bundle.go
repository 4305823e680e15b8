// Package bundle brings containerd's programs to a folder of their own: from an archive as upstream releases it, or from where a Docker
// of static binaries has them. It writes nothing but that folder, which is there in whole or not at all.
//
// The step containerd-install calls it, for hosts whose package manager cannot help.
package bundle

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
)

// Names are the programs that are taken, wherever in an archive they lie: upstream has them in bin, archives with CNI plugins in
// usr/local/bin and usr/local/sbin, Docker's in docker.
var Names = []string{"containerd", "containerd-shim", "containerd-shim-runc-v1", "containerd-shim-runc-v2", "ctr", "runc"}

// Shim is what runs a pod for containerd; without it, it runs none.
const Shim = "containerd-shim-runc-v2"

const (
	// maxProgram is far above any of the programs, in bytes; maxEntries above the number of files in any archive.
	maxProgram = 512 << 20
	maxEntries = 10000
)

// Archive is what is in an archive.
type Archive struct {
	SHA256 string
	// Sizes are those of the programs in it, in bytes.
	Sizes map[string]int64
}

// Size is what the programs need unpacked.
func (a Archive) Size() (sum int64) {
	for _, size := range a.Sizes {
		sum += size
	}
	return sum
}

// Want is what an archive has to be.
type Want struct {
	// SHA256 is the digest that the operator gave, in lower-case hexadecimal digits; empty if there is none.
	SHA256 string
	// Containerd is where to put a copy of its containerd; empty for none. Where Read returns an error, there is none.
	Containerd string
}

// Read reads an archive, a tar that may be compressed by gzip, to its end. It checks what it reads against the digest that is wanted, or else
// against the sum in a file of the same name with .sha256 or .sha256sum behind it, if there is one. What it puts down was read with the
// same bytes: nothing can be changed in between. The archive has to hold containerd and its shim.
func Read(file string, want Want) (Archive, error) {
	a, err := read(file, want)
	if err != nil && want.Containerd != "" {
		err = errors.Join(err, os.RemoveAll(want.Containerd))
	}
	return a, err
}

func read(file string, want Want) (Archive, error) {
	a := Archive{Sizes: map[string]int64{}}
	sum, err := walk(file, func(name string, _ fs.FileMode, content io.Reader) error {
		if _, twice := a.Sizes[name]; twice {
			return fmt.Errorf("it holds %s twice", name)
		}
		counted := &counter{from: content}
		defer func() { a.Sizes[name] = counted.n }()
		if name == "containerd" && want.Containerd != "" {
			return write(want.Containerd, counted)
		}
		_, err := io.Copy(io.Discard, counted)
		return err
	})
	if err != nil {
		return Archive{}, fmt.Errorf("read archive %s: %w", file, err)
	}
	a.SHA256 = sum
	if want.SHA256 != "" && want.SHA256 != sum {
		return Archive{}, fmt.Errorf("check archive %s: its SHA-256 is %s, and --containerd-archive-sha256 is %s", file, sum, want.SHA256)
	}
	if want.SHA256 == "" {
		if err := checkSum(file, sum); err != nil {
			return Archive{}, err
		}
	}
	for _, name := range []string{"containerd", Shim} {
		if a.Sizes[name] == 0 {
			return Archive{}, fmt.Errorf("read archive %s: it does not hold %s", file, name)
		}
	}
	return a, nil
}

// counter counts what is read.
type counter struct {
	from io.Reader
	n    int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n += int64(n)
	return n, err
}

func checkSum(file, sum string) error {
	for _, suffix := range []string{".sha256", ".sha256sum"} {
		data, err := os.ReadFile(file + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("check archive %s: %w", file, err)
		}
		want := strings.Fields(string(data))
		if len(want) == 0 || !strings.EqualFold(want[0], sum) {
			return fmt.Errorf("check archive %s: its SHA-256 is %s, and %s says another one", file, sum, file+suffix)
		}
		return nil
	}
	return nil
}

// walk calls take for each program and returns the checksum of the file.
func walk(file string, take func(name string, mode fs.FileMode, content io.Reader) error) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(errors.New("it is not a file"), err)
	}
	hash := sha256.New()
	whole := bufio.NewReader(io.TeeReader(f, hash))
	var content io.Reader = whole
	if magic, _ := whole.Peek(2); string(magic) == "\x1f\x8b" {
		if content, err = gzip.NewReader(whole); err != nil {
			return "", err
		}
	}
	archive := tar.NewReader(content)
	for range maxEntries {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			// What follows the end of the archive is part of the file.
			if _, err := io.Copy(io.Discard, whole); err != nil {
				return "", err
			}
			return hex.EncodeToString(hash.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
		name := path.Base(header.Name)
		if header.Typeflag != tar.TypeReg || !slices.Contains(Names, name) {
			continue
		}
		if header.Size > maxProgram {
			return "", fmt.Errorf("%s in it has %d bytes", header.Name, header.Size)
		}
		if err := take(name, header.FileInfo().Mode(), archive); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("it holds more than %d files", maxEntries)
}

// Unpack puts an archive's programs into the folder bin of dir, which is made. The archive has to be the one whose checksum is sum.
func Unpack(file, sum, dir string) error {
	return place(dir, func(bin string) error {
		got, err := walk(file, func(name string, _ fs.FileMode, content io.Reader) error {
			return write(filepath.Join(bin, name), content)
		})
		if err == nil && got != sum {
			err = errors.New("it has changed since it was looked at")
		}
		if err != nil {
			return fmt.Errorf("unpack archive %s: %w", file, err)
		}
		return nil
	})
}

// Copy puts programs of the host into the folder bin of dir, which is made.
func Copy(programs []string, dir string) error {
	return place(dir, func(bin string) error {
		for _, program := range programs {
			from, err := os.Open(program)
			if err != nil {
				return fmt.Errorf("copy %s: %w", program, err)
			}
			err = write(filepath.Join(bin, filepath.Base(program)), from)
			if err = errors.Join(err, from.Close()); err != nil {
				return fmt.Errorf("copy %s: %w", program, err)
			}
		}
		return nil
	})
}

const partial = ".partial"

// place makes a folder in one instant: fill works on another one beside it. A folder that is there is whole.
func place(dir string, fill func(bin string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	temp := dir + partial
	if err := os.RemoveAll(temp); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	bin := filepath.Join(temp, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil { //nolint:gosec // programs are for all to run
		return fmt.Errorf("make %s: %w", dir, err)
	}
	if err := fill(bin); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	if err := errors.Join(host.SyncDir(bin), host.SyncDir(temp)); err != nil {
		return err
	}
	if err := os.Rename(temp, dir); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	return host.SyncDir(filepath.Dir(dir))
}

// selinux is the extended attribute with a file's label; without SELinux files have none.
const selinux = "security.selinux"

// LabelOf returns a program's SELinux label, empty if it has none.
func LabelOf(program string) string {
	label := make([]byte, 256)
	n, err := unix.Lgetxattr(program, selinux, label)
	if err != nil {
		return ""
	}
	return string(label[:n])
}

// Label gives the programs in dir an SELinux label.
func Label(dir, label string) error {
	if label == "" {
		return nil
	}
	programs, err := filepath.Glob(filepath.Join(dir, "bin", "*"))
	if err != nil {
		return fmt.Errorf("label programs: %w", err)
	}
	for _, program := range programs {
		if err := unix.Lsetxattr(program, selinux, []byte(label), 0); err != nil {
			return fmt.Errorf("label %s: %w", program, err)
		}
	}
	return host.SyncFileSystems(dir)
}

// Remove takes back what Unpack or Copy made, whole or half-way, and the folder above if nothing else is in it.
func Remove(dir string) error {
	if err := errors.Join(os.RemoveAll(dir+partial), os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	host.RemoveDir(filepath.Dir(dir)) // unless something else is in it
	return nil
}

// write makes a program that lasts.
func write(to string, content io.Reader) error {
	file, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755) //nolint:gosec // a program
	if err != nil {
		return err
	}
	n, err := io.Copy(file, io.LimitReader(content, maxProgram+1))
	if err == nil && n > maxProgram {
		err = errors.New("it is too large")
	}
	if err == nil {
		err = file.Chmod(0o755) // whatever the umask
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}
