package hostile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
)

// The bounds of one call: its output and the bundle with evidence in bytes, its memory in KiB, and a time that only a call that hangs reaches.
const (
	maxOutput = 16 << 20
	maxBundle = 64 << 20
	maxMemory = 512 << 10
	maxTime   = 10 * time.Minute
)

// program is the plugin, built once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kubectl-runtime-hostile-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kubectl-runtime")
	build := exec.Command("go", "build", "-ldflags=-s -w -X main.version=v0.0.0-test", "-o", path, "../../cmd/kubectl-runtime")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

// operator is somebody at a machine with a home directory of its own, who must find nothing there but evidence.
type operator struct {
	t                *testing.T
	top, desk        string
	config, software string
	node             string
}

func newOperator(t *testing.T, s *apiserver.Server, node string) *operator {
	t.Helper()
	software, err := program()
	if err != nil {
		t.Fatal(err)
	}
	top := t.TempDir()
	o := &operator{t: t, top: top, desk: filepath.Join(top, "home", "desk"), config: apiserver.Kubeconfig(t, s.Admin()), software: software, node: node}
	for _, dir := range []string{o.desk, filepath.Join(top, "tmp")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// call is a command of the plugin, with what has to come of it.
type call struct {
	args []string
	// code is the exit code, and says a part of the output, empty if any will do.
	code int
	says string
	// missing is a part of the reason why the bundle has nothing from the host; empty if there need be no bundle.
	missing string
}

// run runs the plugin, and checks all that has to be true of any call.
func (o *operator) run(c call) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), maxTime)
	defer cancel()
	// The bound on its data ends a program that takes more memory, before the machine has none.
	limited := fmt.Sprintf(`ulimit -d %d || exit 99; exec "$0" "$@"`, maxMemory)
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", limited, o.software}, c.args...)...)
	out, errOut := &capped{most: maxOutput}, &capped{most: maxOutput}
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, errOut, o.desk
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "KUBECONFIG=" + o.config, "HOME=" + filepath.Join(o.top, "home"), "TMPDIR=" + filepath.Join(o.top, "tmp"), "LC_ALL=C.UTF-8",
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		o.t.Errorf("%s did not end by itself: %v", c.args, err)
	}
	all := out.String() + errOut.String()
	if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(all, c.says) || regexp.MustCompile(`(?m)^(panic|fatal error): `).MatchString(all) {
		o.t.Errorf("%s: exit code %d, want %d; %q has to be in:\n%.4000s", c.args, code, c.code, c.says, all)
	}
	if out.over || errOut.over {
		o.t.Errorf("%s prints more than %d bytes", c.args, maxOutput)
	}
	o.wantHarmless(c.args, out.String())
	o.wantHarmless(c.args, errOut.String())
	if strings.Contains(strings.Join(c.args, " "), "-o json") && out.Len() > 0 {
		if !json.Valid(out.Bytes()) {
			o.t.Errorf("%s prints no JSON:\n%.2000s", c.args, out)
		}
	}
	o.wantOnlyEvidence(c.args)
	if c.missing != "" {
		saved := regexp.MustCompile(`evidence of why it failed: (\S+)`).FindStringSubmatch(errOut.String())
		if saved == nil {
			o.t.Errorf("%s saved no evidence:\n%.2000s", c.args, errOut)
		} else if why, err := o.readBundle(filepath.Join(o.desk, saved[1])); err != nil || !strings.Contains(why, c.missing) {
			o.t.Errorf("%s has no evidence from the host: %.2000q, %v; want %q", c.args, why, err, c.missing)
		}
	}
}

// forged are lines that the node began.
var forged = regexp.MustCompile(`(?m)^(error: |hint: |warning: |node/)` + mark)

// wantHarmless: a terminal obeys nothing in a text, and no line of it is the node's own.
func (o *operator) wantHarmless(args []string, text string) {
	o.t.Helper()
	for i, r := range text {
		if r == utf8.RuneError || r != '\n' && r != '\t' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			if _, size := utf8.DecodeRuneInString(text[i:]); r != utf8.RuneError || size == 1 {
				o.t.Errorf("%s prints %U: %q", args, r, text[max(0, i-200):min(len(text), i+50)])
				return
			}
		}
	}
	if found := forged.FindString(text); found != "" {
		o.t.Errorf("%s prints a line of the node's as its own: %.300q", args, found)
	}
}

// bundle is the name of a file with evidence.
var bundle = regexp.MustCompile(`^kubectl-runtime-(lie-[a-z0-9-]+)-(r1|[0-9]{8}-[0-9]{6}-[a-z0-9]{5})(-[0-9]+)?\.tar\.gz$`)

// wantOnlyEvidence: nothing was written but evidence in the working directory, which unpacks below itself.
func (o *operator) wantOnlyEvidence(args []string) {
	o.t.Helper()
	err := filepath.WalkDir(o.top, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name := bundle.FindStringSubmatch(entry.Name())
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if filepath.Dir(path) != o.desk || name == nil || name[1] != o.node || info.Mode() != 0o600 || info.Size() > maxBundle {
			o.t.Errorf("%s left %s, %s, %d bytes", args, path, info.Mode(), info.Size())
			return nil
		}
		_, err = o.readBundle(path)
		return err
	})
	if err != nil {
		o.t.Error(err)
	}
}

// readBundle checks the entries of a bundle, and returns why it has none from the host, if so.
func (o *operator) readBundle(path string) (missing string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	zip, err := gzip.NewReader(file)
	if err != nil {
		return "", err
	}
	folder := "kubectl-runtime-" + o.node + "-"
	total := int64(0)
	for archive := tar.NewReader(zip); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		if header.Typeflag != tar.TypeReg || untrusted.LocalName(header.Name) != nil || !strings.HasPrefix(header.Name, folder) {
			o.t.Errorf("the evidence holds %q, %c", header.Name, header.Typeflag)
		}
		if total += header.Size; total > maxBundle {
			o.t.Fatalf("the evidence is more than %d bytes unpacked", maxBundle)
		}
		if strings.HasSuffix(header.Name, "/host.missing") {
			text, err := io.ReadAll(archive)
			if err != nil {
				return "", err
			}
			missing = string(text)
		}
	}
	return missing, nil
}

// capped keeps at most a number of bytes.
type capped struct {
	bytes.Buffer
	most int
	over bool
}

func (c *capped) Write(p []byte) (int, error) {
	if c.over = c.over || c.Len()+len(p) > c.most; !c.over {
		c.Buffer.Write(p)
	}
	return len(p), nil
}
