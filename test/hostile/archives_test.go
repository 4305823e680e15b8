package hostile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// archives is a node that has other evidence each time. What is wrong with it is in the bundle, in place of it.
func archives() lie {
	type archive struct {
		says  string
		print func(func([]byte) error) error
	}
	const outside = "not the name of a file below a folder"
	whole := func(data []byte) func(func([]byte) error) error {
		return func(write func([]byte) error) error { return write(data) }
	}
	list := []archive{
		{"larger than", bomb},
		{outside, whole(pack(tar.Header{Name: "../../.ssh/authorized_keys"}))},
		{outside, whole(pack(tar.Header{Name: "/etc/cron.d/evil"}))},
		{outside, whole(pack(tar.Header{Name: strings.Repeat("a/", 100<<10) + "b"}))},
		{"not a regular file", whole(pack(tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, tar.Header{Name: "a/b"}))},
		{"not a regular file", whole(pack(tar.Header{Name: "a", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}))},
		{"twice", whole(pack(tar.Header{Name: "a"}, tar.Header{Name: "a"}))},
		{"EOF", whole(pack(tar.Header{Name: "a", Size: 1 << 20})[:300])},
		{"larger than", func(write func([]byte) error) error { return flood(write, 1<<40) }},
	}
	l := lie{name: "archives", set: func(h *hollow.Node) {
		h.Script[protocol.PhasePrepare] = func(h *hollow.Node, spec protocol.Spec) {
			h.Result(spec, protocol.Result{Outcome: protocol.OutcomeRefused, Message: "enough"})
		}
		n := 0
		execs("evidence", func(write func([]byte) error) error {
			n++
			return list[(n-1)%len(list)].print(write)
		})(h)
	}}
	for _, a := range list {
		l.calls = append(l.calls, call{args: doSwitch, code: 2, says: "enough", missing: a.says})
	}
	return l
}

// endlessArchive never comes to an end.
func endlessArchive() lie {
	set := execs("evidence", func(write func([]byte) error) error { return forever(write, []byte("x")) })
	return lie{name: "endless-archive", set: func(h *hollow.Node) {
		set(h)
		h.Script[protocol.PhasePrepare] = sayWords(protocol.OutcomeRefused)
	}, calls: []call{{args: doSwitch, code: 2, says: "the node says: ", missing: "not done after 1m0s"}}}
}

// pack makes an archive of headers, each with its size of zeros.
func pack(headers ...tar.Header) []byte {
	var data bytes.Buffer
	zip := gzip.NewWriter(&data)
	archive := tar.NewWriter(zip)
	for _, header := range headers {
		header.Mode = 0o600
		err := archive.WriteHeader(&header)
		if err == nil {
			_, err = io.CopyN(archive, zeros{}, header.Size)
		}
		if err != nil {
			panic(fmt.Sprintf("pack %.40q: %v", header.Name, err))
		}
	}
	if err := errors.Join(archive.Flush(), zip.Close()); err != nil {
		panic(err)
	}
	return data.Bytes()
}

// bomb is an archive with a file of 1 GiB: the same compressed MiB, again and again.
func bomb(write func([]byte) error) error {
	var head, mega bytes.Buffer
	zip := gzip.NewWriter(&head)
	_ = tar.NewWriter(zip).WriteHeader(&tar.Header{Name: "a", Mode: 0o600, Size: 1 << 30})
	_ = zip.Close()
	zip = gzip.NewWriter(&mega)
	_, _ = zip.Write(make([]byte, 1<<20))
	_ = zip.Close()
	return write(append(head.Bytes(), bytes.Repeat(mega.Bytes(), 1<<10)...))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
