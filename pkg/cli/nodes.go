package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
)

// ListChunk is how many objects one request lists; kubectl's --chunk-size has the same default.
const ListChunk = 500

// getsAtOnce bounds how many nodes are asked for at a time when the user named them.
const getsAtOnce = 8

// NodeSelection is the nodes that a user means: by name, or by selectors. Both at once is an error; neither means all.
type NodeSelection struct {
	Names         []string
	LabelSelector string
	FieldSelector string
}

// Validate judges the selection without asking the server.
func (s NodeSelection) Validate() error {
	if len(s.Names) > 0 && (s.LabelSelector != "" || s.FieldSelector != "") {
		return errors.New("node names and a selector cannot be combined: give names, or --selector and --field-selector")
	}
	if _, err := labels.Parse(s.LabelSelector); err != nil {
		return fmt.Errorf("--selector %q: %w", s.LabelSelector, err)
	}
	if _, err := fields.ParseSelector(s.FieldSelector); err != nil {
		return fmt.Errorf("--field-selector %q: %w", s.FieldSelector, err)
	}
	for _, name := range s.Names {
		if kind, _, slash := strings.Cut(name, "/"); slash && !slices.Contains([]string{"node", "nodes", "no"}, kind) {
			return fmt.Errorf("%q is not a node: give NAME or node/NAME", name)
		}
	}
	return nil
}

// NodeNames are the names without "node/", each once, in the user's order.
func (s NodeSelection) NodeNames() []string {
	var names []string
	for _, name := range s.Names {
		if _, after, ok := strings.Cut(name, "/"); ok {
			name = after
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// FindNodes reads the selected nodes, sorted by name. Of nodes named by the user it returns those that are there, together with
// an error that names the others.
func FindNodes(ctx context.Context, f *Factory, client kubernetes.Interface, selection NodeSelection) ([]corev1.Node, error) {
	if len(selection.Names) == 0 {
		list, err := ListNodes(ctx, f, client, metav1.ListOptions{LabelSelector: selection.LabelSelector, FieldSelector: selection.FieldSelector})
		if err != nil {
			return nil, err
		}
		return list.Items, nil
	}
	return getNodes(ctx, f, client, selection.NodeNames())
}

// FindSomeNodes reads the nodes of a switch; not to find any is a failed check.
func FindSomeNodes(ctx context.Context, f *Factory, client kubernetes.Interface, selection NodeSelection) ([]corev1.Node, error) {
	nodes, err := FindNodes(ctx, f, client, selection)
	if errors.Is(err, errNodeNotFound) {
		var exit *ExitError
		if errors.As(err, &exit) {
			exit.Code = ExitRefused
		}
	}
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		if selection.LabelSelector != "" {
			return nil, Exitf(ExitRefused, "no node matches the selector %q", selection.LabelSelector).
				WithHint("`%s` shows the nodes with their labels", f.Kubectl("get", "nodes", "--show-labels"))
		}
		return nil, Exitf(ExitRefused, "the cluster has no nodes")
	}
	return nodes, nil
}

// ListNodes lists nodes, sorted by name.
func ListNodes(ctx context.Context, f *Factory, client kubernetes.Interface, options metav1.ListOptions) (*corev1.NodeList, error) {
	all := &corev1.NodeList{}
	var err error
	all.Items, all.ResourceVersion, err = ListChunks(ctx, f, "nodes", options, func(options metav1.ListOptions) ([]corev1.Node, metav1.ListMeta, error) {
		list, err := client.CoreV1().Nodes().List(ctx, options)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		return list.Items, list.ListMeta, nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all.Items, func(a, b corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// ListChunks lists in chunks, and tells the list's version. A list that grows too old to be continued is started again, once in one
// piece, as client-go's pager does it. Resource is RBAC's word.
func ListChunks[T any](ctx context.Context, f *Factory, resource string, options metav1.ListOptions,
	list func(metav1.ListOptions) ([]T, metav1.ListMeta, error),
) ([]T, string, error) {
	var all []T
	options.Limit = ListChunk
	for {
		items, meta, err := list(options)
		if apierrors.IsResourceExpired(err) && options.Continue != "" {
			options.Limit, options.Continue, all = 0, "", nil
			continue
		}
		if err != nil {
			return nil, "", f.Explain("list", resource, "", err)
		}
		all = append(all, items...)
		if options.Continue = meta.Continue; options.Continue == "" || ctx.Err() != nil {
			return all, meta.ResourceVersion, ctx.Err()
		}
	}
}

func getNodes(ctx context.Context, f *Factory, client kubernetes.Interface, names []string) ([]corev1.Node, error) {
	var mu sync.Mutex
	var nodes []corev1.Node
	failed := map[string]error{}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(getsAtOnce)
	for _, name := range names {
		group.Go(func() error {
			node, err := client.CoreV1().Nodes().Get(groupCtx, name, metav1.GetOptions{})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				nodes = append(nodes, *node)
				return nil
			case apierrors.IsNotFound(err):
				failed[name] = errNodeNotFound
				return nil
			default:
				return f.Explain("get", "nodes", name, err)
			}
		})
	}
	err := group.Wait()
	slices.SortFunc(nodes, func(a, b corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	if err != nil {
		return nodes, err
	}
	return nodes, UnknownNodes(f, names, failed)
}

// errNodeNotFound is in the error of FindNodes for names that the cluster does not have.
var errNodeNotFound = errors.New("not found")

// UnknownNodes is one error for all the names that the cluster does not have.
func UnknownNodes(f *Factory, names []string, failed map[string]error) error {
	unknown := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return failed[name] == nil })
	if len(unknown) == 0 {
		return nil
	}
	slices.Sort(unknown)
	for i, name := range unknown {
		unknown[i] = fmt.Sprintf("%q", name)
	}
	what := "node"
	if len(unknown) > 1 {
		what = "nodes"
	}
	return Exitf(ExitGeneral, "%s %s %w", what, strings.Join(unknown, ", "), errNodeNotFound).
		WithHint("`%s` lists the nodes", f.Kubectl("get", "nodes"))
}

// Explain says what was asked for when the server refused or was not there, and how the user can find out more. verb and
// resource are RBAC's words; name may be empty.
func (f *Factory) Explain(verb, resource, name string, err error) error {
	var exit *ExitError
	if errors.As(err, &exit) || errors.Is(err, context.Canceled) {
		return err
	}
	what := strings.TrimSuffix(verb+" "+resource+" "+name, " ")
	var netErr net.Error
	var urlErr *url.Error
	switch {
	case apierrors.IsForbidden(err):
		return Exitf(ExitGeneral, "%s: %w", what, err).
			WithHint("a role with %q on %q is needed; `%s` shows whether you have it", verb, resource, f.Kubectl("auth", "can-i", verb, resource))
	case apierrors.IsUnauthorized(err):
		return Exitf(ExitGeneral, "%s: the server does not accept your credentials: %w", what, err).
			WithHint("log in again, or check --context and --user")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return Exitf(ExitTimeout, "%s: no answer in time: %w", what, err)
	case errors.As(err, &urlErr):
		return Exitf(ExitGeneral, "%s: %w", what, urlErr.Err).
			WithHint("the server is %s: check --context, --server and $KUBECONFIG", serverOf(urlErr))
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

func serverOf(err *url.Error) string {
	u, parseErr := url.Parse(err.URL)
	if parseErr != nil || u.Host == "" {
		return cmp.Or(err.URL, "unknown")
	}
	return u.Scheme + "://" + u.Host
}
