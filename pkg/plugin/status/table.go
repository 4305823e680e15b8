package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/cli"
)

// errNoTable says that the server's table cannot be used; the Nodes themselves can.
var errNoTable = errors.New("the server has no table of nodes")

// nodeTable is the part of a meta.k8s.io/v1 Table that is read. Metadata without managedFields is a fraction of the text.
type nodeTable struct {
	Kind              string                  `json:"kind"`
	Metadata          metav1.ListMeta         `json:"metadata"`
	ColumnDefinitions []struct{ Name string } `json:"columnDefinitions"`
	Rows              []struct {
		Cells  []any `json:"cells"`
		Object struct {
			Metadata struct {
				Name              string            `json:"name"`
				Labels            map[string]string `json:"labels"`
				Annotations       map[string]string `json:"annotations"`
				CreationTimestamp metav1.Time       `json:"creationTimestamp"`
			} `json:"metadata"`
		} `json:"object"`
	} `json:"rows"`
}

// listTable lists nodes, sorted by name, by the table that `kubectl get nodes -o wide` asks for: the images that Nodes list are most
// of them, and thousands of Nodes take seconds. Only what that table and the metadata hold is set; a Ready condition that is not
// true is false, since the table does not tell false from unknown.
func listTable(ctx context.Context, f *cli.Factory, client kubernetes.Interface, options metav1.ListOptions) ([]corev1.Node, error) {
	nodes, _, err := cli.ListChunks(ctx, f, "nodes", options, func(options metav1.ListOptions) ([]corev1.Node, metav1.ListMeta, error) {
		result := client.CoreV1().RESTClient().Get().Resource("nodes").VersionedParams(&options, scheme.ParameterCodec).
			SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").Do(ctx)
		if err := result.Error(); err != nil {
			return nil, metav1.ListMeta{}, err
		}
		raw, err := result.Raw()
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		return readTable(raw)
	})
	slices.SortFunc(nodes, func(a, b corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes, err
}

// readTable reads what printNode of k8s.io/kubernetes/pkg/printers/internalversion/printers.go (1.18 to 1.37) wrote.
func readTable(raw []byte) ([]corev1.Node, metav1.ListMeta, error) {
	var table nodeTable
	if err := json.Unmarshal(raw, &table); err != nil {
		return nil, metav1.ListMeta{}, fmt.Errorf("read the table of nodes: %w", err)
	}
	columns := map[string]int{}
	for n, column := range table.ColumnDefinitions {
		columns[column.Name] = n
	}
	for _, name := range []string{"Status", "Version", "Internal-IP", "OS-Image", "Kernel-Version", "Container-Runtime"} {
		if _, ok := columns[name]; !ok && (table.Kind != "Table" || len(table.Rows) > 0) {
			return nil, metav1.ListMeta{}, errNoTable
		}
	}
	nodes := make([]corev1.Node, 0, len(table.Rows))
	for _, row := range table.Rows {
		cell := func(name string) string {
			if columns[name] >= len(row.Cells) {
				return ""
			}
			text, _ := row.Cells[columns[name]].(string)
			if text == "<none>" || text == "<unknown>" {
				return ""
			}
			return text
		}
		node := corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: row.Object.Metadata.Name, Labels: row.Object.Metadata.Labels, Annotations: row.Object.Metadata.Annotations,
			CreationTimestamp: row.Object.Metadata.CreationTimestamp,
		}}
		if node.Name == "" {
			return nil, metav1.ListMeta{}, errNoTable
		}
		status := strings.Split(cell("Status"), ",")
		node.Spec.Unschedulable = slices.Contains(status, "SchedulingDisabled")
		if ready, known := map[string]corev1.ConditionStatus{"Ready": corev1.ConditionTrue, "NotReady": corev1.ConditionFalse}[status[0]]; known {
			node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
		}
		if ip := cell("Internal-IP"); ip != "" {
			node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
		}
		kernel, _, _ := strings.Cut(cell("Kernel-Version"), " (") // newer servers add the architecture
		node.Status.NodeInfo = corev1.NodeSystemInfo{
			KubeletVersion: cell("Version"), OSImage: cell("OS-Image"), KernelVersion: kernel,
			ContainerRuntimeVersion: cell("Container-Runtime"), Architecture: node.Labels[corev1.LabelArchStable],
		}
		nodes = append(nodes, node)
	}
	return nodes, table.Metadata, nil
}
