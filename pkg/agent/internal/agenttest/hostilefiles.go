package agenttest

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// oddSize is what no configuration file has, in bytes.
const oddSize = 10 << 20

// oddFiles are contents that a parser of files that others wrote has to put up with. They are what fuzzing does not come to: large.
var oddFiles = sync.OnceValue(func() map[string][]byte {
	binary := make([]byte, 1<<20)
	random := rand.New(rand.NewPCG(1, 2)) // the same each time
	for i := range binary {
		binary[i] = byte(random.Uint32())
	}
	fill := func(with string) []byte { return bytes.Repeat([]byte(with), oddSize/len(with)) }
	just := func(with string) []byte { return bytes.Repeat([]byte(with), (1<<20)/len(with)) } // as large as is read at all
	return map[string][]byte{
		"empty": {}, "BOM": []byte("\ufeff"), "BOM and a line": []byte("\ufeffA=b\n"), "UTF-16": {0xff, 0xfe, 'A', 0, '=', 0}, "binary": binary, "NULs": just("\x00"),
		"one line": append([]byte("A="), fill("x")...), "lines": fill("A=b\n"), "open brackets": fill("["), "open braces": fill("{"),
		"just one line": append([]byte("A="), just("x")[9:]...), "just spaces": append([]byte(`A="a"`), just(" ")[9:]...),
		"just quotes": append([]byte("A="), just(`"a"`)[9:]...), "just escapes": append([]byte("A="), just("\\a")[9:]...),
		"just continued": append([]byte("A="), just("\\\n")[9:]...), "just brackets": append([]byte("a = "), just("[")[9:]...), "just braces": just("{"), "just YAML": just("- "),
		"just comments": just("# x\n"), "just sections": just("[Service]\n"), "just colons": just("a: "), "just anchors": anchors(),
		"just dots": append([]byte(strings.TrimSuffix(string(just("a.")[9:]), ".")), " = 1\n"...),
	}
})

// anchors is a YAML file that grows to nine to the ninth strings where aliases are followed.
func anchors() []byte {
	text := []byte("a: &a [x,x,x,x,x,x,x,x,x]\n")
	for c := byte('b'); c < 'j'; c++ {
		text = append(text, c, ':', ' ', '&', c, ' ', '[')
		text = append(text, bytes.TrimSuffix(bytes.Repeat([]byte{'*', c - 1, ','}, 9), []byte(","))...)
		text = append(text, "]\n"...)
	}
	return text
}

// patience is many times what a parser takes for any of them on a slow machine.
const patience = time.Minute

// TryOddFiles gives each of oddFiles to a parser, which must return, and not panic.
func TryOddFiles(t *testing.T, parse func(data []byte)) {
	t.Helper()
	files := oddFiles()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		done := make(chan struct{})
		began := time.Now()
		go func() {
			defer close(done)
			parse(slices.Clone(files[name]))
		}()
		select {
		case <-done:
			if took := time.Since(began); took > patience/10 {
				t.Logf("%s took %s", name, took)
			}
		case <-time.After(patience):
			t.Fatalf("%s: not done after %s", name, patience)
		}
	}
}
