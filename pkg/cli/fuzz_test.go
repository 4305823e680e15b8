package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// FuzzPrintError: whatever an error, captured output and a hint hold, each line says whose it is.
func FuzzPrintError(f *testing.F) {
	f.Add("node n: x", "line\nhint: y", "the node says: a\nerror: b")
	f.Add("\r\n\u2028hint: x", "\x1b[2J\x85", "\n")
	f.Fuzz(func(t *testing.T, message, detail, hint string) {
		var out bytes.Buffer
		PrintError(&out, &ExitError{Err: errors.New(message), Detail: detail, Hint: hint})
		errs, hints := 0, 0
		for line := range strings.Lines(out.String()) {
			if untrusted.Visible(line) != line {
				t.Errorf("line %q", line)
			}
			switch {
			case strings.HasPrefix(line, "error: "):
				errs++
			case strings.HasPrefix(line, "hint: "):
				hints++
			case !strings.HasPrefix(line, "  "):
				t.Errorf("line %q", line)
			}
		}
		if errs != 1 || hints > 1 {
			t.Errorf("%q", out.String())
		}
	})
}

// texts is an object as commands print it.
type texts struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Items      []texts  `json:"items,omitempty"`
	Errors     []string `json:"errors,omitempty"`
}

// FuzzPrintable: an object with any text is printed in each format, for the same text.
func FuzzPrintable(f *testing.F) {
	for _, text := range []string{"a", "\x7f\u0085\x00", "\ufffe\uffff\U0001ffff", "\xff\xed\xa0\x80", "\n: - |\t# '\"", "\u2028\ufeff", "0x1", "~"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		object, err := Printable(&texts{APIVersion: "v1", Kind: "Texts", Items: []texts{{Kind: text}}, Errors: []string{text}})
		if err != nil {
			t.Fatal(err)
		}
		for _, format := range []string{"json", "yaml"} {
			printer, err := genericclioptions.NewJSONYamlPrintFlags().ToPrinter(format)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := printer.PrintObj(object, &out); err != nil {
				t.Fatalf("%s of %q: %v", format, text, err)
			}
			if printed := out.String(); untrusted.Visible(printed) != printed {
				t.Errorf("%s of %q: %q", format, text, printed)
			}
			if format == "json" && !json.Valid(out.Bytes()) {
				t.Errorf("%q: %s", text, &out)
			}
		}
	})
}
