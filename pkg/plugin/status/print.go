package status

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"
	"k8s.io/kubectl/pkg/cmd/get"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodestate"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// printFlags are kubectl's output flags that make sense for a list of nodes.
type printFlags struct {
	output    string
	noHeaders bool

	json          *genericclioptions.JSONYamlPrintFlags
	name          *genericclioptions.NamePrintFlags
	template      *genericclioptions.KubeTemplatePrintFlags
	customColumns *get.CustomColumnsPrintFlags
}

func newPrintFlags() *printFlags {
	return &printFlags{
		json:          genericclioptions.NewJSONYamlPrintFlags(),
		name:          genericclioptions.NewNamePrintFlags(""),
		template:      genericclioptions.NewKubeTemplatePrintFlags(),
		customColumns: get.NewCustomColumnsPrintFlags(),
	}
}

func (p *printFlags) addFlags(cmd *cobra.Command) {
	p.template.AddFlags(cmd)
	cmd.Flags().StringVarP(&p.output, "output", "o", "", "Output format. One of: ("+strings.Join(p.formats(), ", ")+")")
	cmd.Flags().BoolVar(&p.noHeaders, "no-headers", false, "Print neither headers nor the summary on standard error")
	err := cmd.RegisterFlagCompletionFunc("output", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return p.formats(), cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		cobra.CompDebugln(err.Error(), false)
	}
}

func (p *printFlags) formats() []string {
	formats := slices.Concat([]string{"wide"}, p.json.AllowedFormats(), p.name.AllowedFormats(), p.template.AllowedFormats(), p.customColumns.AllowedFormats())
	slices.Sort(formats)
	return slices.Compact(formats)
}

// rowPrinter prints rows in one format.
type rowPrinter interface {
	// list prints all rows, once. failure is why some are missing.
	list(w io.Writer, rows []inventory.Row, failure error) error
	// row prints one row of a watch.
	row(w io.Writer, row inventory.Row) error
	// human reports whether a summary for people goes with it.
	human() bool
}

func (p *printFlags) toPrinter(w io.Writer) (rowPrinter, error) {
	p.customColumns.NoHeaders = p.noHeaders
	if p.template.TemplateArgument != nil {
		p.customColumns.TemplateArgument = *p.template.TemplateArgument
		if *p.template.TemplateArgument != "" && p.output == "" {
			p.output = "go-template"
		}
	}
	switch p.output {
	case "", "wide":
		return &tablePrinter{columns: tableColumns(p.output == "wide"), noHeaders: p.noHeaders, out: printers.GetNewTabWriter(w)}, nil
	case "name":
		return namePrinter{}, nil
	}
	for _, flags := range []interface {
		ToPrinter(format string) (printers.ResourcePrinter, error)
	}{p.template, p.json, p.customColumns} {
		printer, err := flags.ToPrinter(p.output)
		if genericclioptions.IsNoCompatiblePrinterError(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("--output %s: %w", p.output, err)
		}
		return objectPrinter{printer}, nil
	}
	return nil, fmt.Errorf("--output %q is not a format: give one of %s", p.output, strings.Join(p.formats(), ", "))
}

// objectPrinter prints through one of kubectl's printers.
type objectPrinter struct{ printer printers.ResourcePrinter }

func (p objectPrinter) list(w io.Writer, rows []inventory.Row, failure error) error {
	list, err := objectsOf(rows, failure)
	if err != nil {
		return err
	}
	return p.printer.PrintObj(list, w)
}

func (p objectPrinter) row(w io.Writer, row inventory.Row) error {
	object, err := objectOf(row)
	if err != nil {
		return err
	}
	return p.printer.PrintObj(object, w)
}

func (objectPrinter) human() bool { return false }

// namePrinter prints "node/NAME" lines.
type namePrinter struct{}

func (p namePrinter) list(w io.Writer, rows []inventory.Row, _ error) error {
	for _, row := range rows {
		if err := p.row(w, row); err != nil {
			return err
		}
	}
	return nil
}

func (namePrinter) row(w io.Writer, row inventory.Row) error {
	return (&printers.NamePrinter{}).PrintObj(nodeReference(row), w)
}

func (namePrinter) human() bool { return false }

// column is one column of the table.
type column struct {
	header string
	cell   func(inventory.Row) string
	// most is the width of the widest cell that a switch can make of it.
	most int
}

const (
	cellNone    = "<none>"
	cellUnknown = "<unknown>"
)

// tableColumns are the table's columns. The narrow table fits into 80 characters for names up to 14.
func tableColumns(wide bool) []column {
	columns := []column{
		{"NAME", func(r inventory.Row) string { return r.Name }, 0},
		{"STATUS", inventory.Row.Status, len("Ready,SchedulingDisabled")},
		{"RUNTIME", func(r inventory.Row) string { return cell(r.Runtime, cellUnknown) }, len(inventory.RuntimeContainerd)},
		{"VERSION", func(r inventory.Row) string { return shortVersion(r.RuntimeVersion) }, 0},
		{"KUBELET", func(r inventory.Row) string { return cell(r.KubeletVersion, cellUnknown) }, 0},
		{"SWITCH", func(r inventory.Row) string { return cell(string(r.Switch), cellNone) }, len(nodestate.StateRollingBack)},
		{"NOTE", func(r inventory.Row) string { return cell(string(r.Advice.ID), "-") }, 0},
	}
	if !wide {
		return columns
	}
	columns[3].cell = func(r inventory.Row) string { return cell(r.RuntimeVersion, cellUnknown) }
	return append(columns,
		column{"INTERNAL-IP", func(r inventory.Row) string { return cell(r.InternalIP, cellNone) }, 0},
		column{"OS-IMAGE", func(r inventory.Row) string { return cell(r.OSImage, cellUnknown) }, 0},
		column{"KERNEL", func(r inventory.Row) string { return cell(r.Kernel, cellUnknown) }, 0},
		column{"ARCH", func(r inventory.Row) string { return cell(r.Architecture, cellUnknown) }, 0},
		column{"CRI-SOCKET", func(r inventory.Row) string { return cell(r.CRISocket, cellNone) }, 0},
	)
}

// shortVersion drops a distribution's suffix: 20.10.24+dfsg1 is 20.10.24.
func shortVersion(s string) string {
	if v, ok := version.Parse(s); ok {
		return v.Numbers()
	}
	return cell(s, cellUnknown)
}

// cell keeps a table readable by awk: no blanks.
func cell(s, empty string) string {
	if s == "" {
		return empty
	}
	return strings.Join(strings.Fields(s), "_")
}

// tablePrinter prints rows below headers and keeps the columns' widths from one flush to the next, for a watch.
type tablePrinter struct {
	columns   []column
	noHeaders bool
	// padded widens the columns for what a switch will put there, since a watch cannot move what it has printed.
	padded bool
	out    flusher
}

type flusher interface {
	io.Writer
	Flush() error
}

func (p *tablePrinter) list(_ io.Writer, rows []inventory.Row, _ error) error {
	if len(rows) == 0 {
		return nil
	}
	for _, row := range rows {
		if err := p.write(row); err != nil {
			return err
		}
	}
	return p.out.Flush()
}

func (p *tablePrinter) row(_ io.Writer, row inventory.Row) error {
	if err := p.write(row); err != nil {
		return err
	}
	return p.out.Flush()
}

func (p *tablePrinter) write(row inventory.Row) error {
	cells := make([]string, len(p.columns))
	if !p.noHeaders {
		p.noHeaders = true
		for i, column := range p.columns {
			cells[i] = column.header
		}
		if _, err := fmt.Fprintln(p.out, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	for i, column := range p.columns {
		cells[i] = column.cell(row)
		if p.padded && i < len(p.columns)-1 {
			cells[i] = fmt.Sprintf("%-*s", column.most, cells[i])
		}
	}
	_, err := fmt.Fprintln(p.out, strings.Join(cells, "\t"))
	return err
}

func (*tablePrinter) human() bool { return true }

// legend explains the notes of a table: a line for each kind of advice, in the order of the rows. Advice that is about one node
// alone, as what a failed switch said, names it.
func legend(rows []inventory.Row) []string {
	var lines []string
	for _, row := range rows {
		var line string
		switch row.Advice.ID {
		case inventory.AdviceNone:
			continue
		case inventory.AdviceRetry, inventory.AdviceRepair:
			line = fmt.Sprintf("%s: %s: %s", row.Advice.ID, row.Name, row.Advice.Text)
		default:
			line = fmt.Sprintf("%s: %s", row.Advice.ID, row.Advice.Text)
		}
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines
}
