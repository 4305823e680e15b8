package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
)

// How long a watch waits before it asks a server again that did not answer; the wait doubles up to the second.
const (
	watchRetryFirst = time.Second
	watchRetryMost  = 30 * time.Second
)

// follower is the state of one `status --watch`.
type follower struct {
	*Options
	names []string
	// shown is what was printed last of each node.
	shown map[string]inventory.Row
	// listed is true once the first list was printed: from then on a server that does not answer is waited for.
	listed bool
}

// runWatch lists, watches from there, and lists again when the watch ends, until ctx does. It prints only what differs from what
// was printed before. Errors before the first list end it; later ones are reported once and outlived.
func (o *Options) runWatch(ctx context.Context) error {
	w := &follower{Options: o, names: o.selection.NodeNames(), shown: map[string]inventory.Row{}}
	wait := watchRetryFirst
	for {
		err := w.once(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			wait = watchRetryFirst
			continue
		case !w.listed, apierrors.IsForbidden(err), apierrors.IsUnauthorized(err), errors.As(err, new(*printFailure)):
			return err
		}
		fmt.Fprintf(o.factory.Streams.ErrOut, "watch: %v; asking again in %s\n", err, wait)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-o.factory.Clock.After(wait):
		}
		wait = min(2*wait, watchRetryMost)
	}
}

// printFailure is an error of the output: nobody reads it any more.
type printFailure struct{ err error }

func (e *printFailure) Error() string { return "print status: " + e.err.Error() }
func (e *printFailure) Unwrap() error { return e.err }

// once lists and watches until the watch ends.
func (w *follower) once(ctx context.Context) error {
	options := metav1.ListOptions{LabelSelector: w.selection.LabelSelector, FieldSelector: w.selection.FieldSelector}
	if len(w.names) == 1 {
		options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, w.names[0]).String()
	}
	list, err := cli.ListNodes(ctx, w.factory, w.client, options)
	if err != nil {
		return err
	}
	nodes := slices.DeleteFunc(list.Items, func(node corev1.Node) bool { return !w.wanted(node.Name) })
	if err := w.showList(inventory.FromNodes(nodes)); err != nil {
		return err
	}

	options.ResourceVersion = list.ResourceVersion
	options.AllowWatchBookmarks = true
	watcher, err := w.client.CoreV1().Nodes().Watch(ctx, options)
	if err != nil {
		return w.factory.Explain("watch", "nodes", "", err)
	}
	defer watcher.Stop()
	started := w.factory.Clock.Now()
	for event := range watcher.ResultChan() {
		if err := w.showEvent(event); err != nil {
			return err
		}
	}
	// A server that ends each watch at once is not to be asked in a tight loop.
	if ctx.Err() == nil && w.factory.Clock.Since(started) < watchRetryFirst {
		return errors.New("the server ended the watch")
	}
	return nil
}

func (w *follower) wanted(name string) bool {
	return len(w.names) == 0 || slices.Contains(w.names, name)
}

// showList prints the rows that differ from the last list or event, and those that are gone.
func (w *follower) showList(rows []inventory.Row) error {
	present := map[string]bool{}
	for _, row := range rows {
		present[row.Name] = true
	}
	if !w.listed {
		missing := map[string]error{}
		for _, name := range w.names {
			if !present[name] {
				missing[name] = errors.New("not found")
			}
		}
		if err := cli.UnknownNodes(w.factory, w.names, missing); err != nil {
			return err
		}
		w.listed = true
	}
	var gone []string
	for name := range w.shown {
		if !present[name] {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	for _, name := range gone {
		if err := w.showGone(name); err != nil {
			return err
		}
	}
	return w.showRows(rows)
}

// showRows prints what changed of rows; the first ones together, so that the columns fit.
func (w *follower) showRows(rows []inventory.Row) error {
	first := len(w.shown) == 0
	changed := slices.DeleteFunc(slices.Clone(rows), func(row inventory.Row) bool { return w.shown[row.Name] == row })
	for _, row := range changed {
		w.shown[row.Name] = row
	}
	if table, ok := w.printer.(*tablePrinter); ok && first {
		table.padded = true
		if err := table.list(w.factory.Streams.Out, changed, nil); err != nil {
			return &printFailure{err}
		}
		return nil
	}
	for _, row := range changed {
		if err := w.printer.row(w.factory.Streams.Out, row); err != nil {
			return &printFailure{err}
		}
	}
	return nil
}

func (w *follower) showEvent(event watch.Event) error {
	switch event.Type {
	case watch.Added, watch.Modified:
		if node, ok := event.Object.(*corev1.Node); ok && w.wanted(node.Name) {
			return w.showRows([]inventory.Row{inventory.FromNode(node)})
		}
	case watch.Deleted:
		if node, ok := event.Object.(*corev1.Node); ok {
			return w.showGone(node.Name)
		}
	case watch.Error:
		err := apierrors.FromObject(event.Object)
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return nil // the channel closes, and the next list starts from now
		}
		return err
	case watch.Bookmark:
	}
	return nil
}

// showGone prints a node for the last time: it was deleted, or the selector matches it no more.
func (w *follower) showGone(name string) error {
	row, ok := w.shown[name]
	if !ok {
		return nil
	}
	delete(w.shown, name)
	row.Gone = true
	if err := w.printer.row(w.factory.Streams.Out, row); err != nil {
		return &printFailure{err}
	}
	return nil
}
