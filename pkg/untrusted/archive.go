package untrusted

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// The bounds of a node's evidence, in bytes: the agent packs at most 8 MiB in files of at most 1 MiB, and a line on what it left out.
const (
	// MaxArchive bounds it as it comes, compressed.
	MaxArchive = 16 << 20
	maxFile    = 2 << 20
	maxFiles   = 500
	maxTotal   = 16 << 20
	maxName    = 200
)

// File is one file of an archive. Its name is local, with slashes.
type File struct {
	Name string
	Data []byte
}

// Archive reads a tar.gz that a node packed. It has to hold regular files alone, with names below the folder that they are unpacked into,
// each once.
func Archive(data []byte) ([]File, error) {
	zip, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read the host's evidence: %w", err)
	}
	unpacked := &io.LimitedReader{R: zip, N: maxTotal + maxFiles*1024}
	files, err := readTar(tar.NewReader(unpacked))
	if unpacked.N <= 0 {
		err = &TooMuchError{What: "it", Most: maxTotal}
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's evidence: %w", err)
	}
	return files, nil
}

func readTar(archive *tar.Reader) ([]File, error) {
	var files []File
	have := map[string]bool{}
	total := 0
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if err := LocalName(header.Name); err != nil {
			return nil, err
		}
		switch {
		case header.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("%s in it is not a regular file", header.Name)
		case have[header.Name]:
			return nil, fmt.Errorf("it holds %s twice", header.Name)
		case len(files) == maxFiles:
			return nil, fmt.Errorf("it holds more than %d files", maxFiles)
		}
		content, err := ReadAll(archive, header.Name+" in it", maxFile)
		if err != nil {
			return nil, err
		}
		if total += len(content); total > maxTotal { // also of sparse files, which take no room in the archive
			return nil, &TooMuchError{What: "it", Most: maxTotal}
		}
		have[header.Name] = true
		files = append(files, File{header.Name, content})
	}
}

// LocalName judges the name of a file that is to be put below a folder: no system may take it for anything else, and it is printable ASCII.
func LocalName(name string) error {
	isOdd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`\:*?"<>|`, r) }
	if len(name) > maxName || strings.ContainsFunc(name, isOdd) || !filepath.IsLocal(filepath.FromSlash(name)) || strings.HasSuffix(name, "/") {
		return fmt.Errorf("%.80q is not the name of a file below a folder", name)
	}
	return nil
}
