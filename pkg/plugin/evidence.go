package plugin

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodeswitch"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// maxBundles is how many bundles of one run lie side by side before the oldest name is an error.
const maxBundles = 99

// saveEvidence writes the evidence of a failed run to the working directory, or else to the folder for temporary files, and says
// where it is. Without it the run's own error is still reported.
func saveEvidence(errOut io.Writer, report *nodeswitch.Report) {
	if len(report.Evidence) == 0 {
		return
	}
	name, err := writeBundle(".", report)
	if err != nil {
		var elsewhere error
		if name, elsewhere = writeBundle(os.TempDir(), report); elsewhere != nil {
			fmt.Fprintf(errOut, "warning: the evidence was not kept: %v\n", errors.Join(err, elsewhere))
			return
		}
	}
	fmt.Fprintf(errOut, "evidence of why it failed: %s\n", name)
}

// writeBundle writes a new tar.gz into a folder and returns its path.
func writeBundle(dir string, report *nodeswitch.Report) (name string, err error) {
	base := "kubectl-runtime-" + report.Node + "-" + report.Run
	if err := untrusted.LocalName(base); err != nil || strings.Contains(base, "/") {
		return "", fmt.Errorf("write evidence: run %.80q of node %.80q is no part of a file's name", report.Run, report.Node)
	}
	for _, item := range report.Evidence {
		if err := untrusted.LocalName(item.Name); err != nil {
			return "", fmt.Errorf("write evidence: %w", err)
		}
	}
	var file *os.File
	for i := 1; file == nil; i++ {
		name = filepath.Join(dir, base+".tar.gz")
		if i > 1 {
			name = filepath.Join(dir, fmt.Sprintf("%s-%d.tar.gz", base, i))
		}
		// A run that is resumed may fail again. A link in the file's place is not followed.
		file, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil && (!errors.Is(err, fs.ErrExist) || i == maxBundles) {
			return "", fmt.Errorf("write evidence: %w", err)
		}
	}
	zip := gzip.NewWriter(file)
	archive := tar.NewWriter(zip)
	now := time.Now()
	errs := make([]error, 0, len(report.Evidence)+3)
	for _, item := range report.Evidence {
		header := &tar.Header{Name: path.Join(base, item.Name), Mode: 0o600, Size: int64(len(item.Data)), ModTime: now}
		if err := archive.WriteHeader(header); err != nil {
			errs = append(errs, err)
			break
		}
		_, err := archive.Write(item.Data)
		errs = append(errs, err)
	}
	if err := errors.Join(append(errs, archive.Close(), zip.Close(), file.Close())...); err != nil {
		return "", fmt.Errorf("write evidence: %w", errors.Join(err, os.Remove(name)))
	}
	return name, nil
}
