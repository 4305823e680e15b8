package status

import (
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/inventory"
)

// FuzzReadTable: a table of nodes is read whatever its cells are, and each of its nodes has a row.
func FuzzReadTable(f *testing.F) {
	f.Add([]byte(`{"kind":"Table","columnDefinitions":[{"name":"Status"},{"name":"Version"},{"name":"Internal-IP"},{"name":"OS-Image"},{"name":"Kernel-Version"},{"name":"Container-Runtime"}],` +
		`"rows":[{"cells":["Ready","v1.23.17","10.0.0.1","Debian","6.1 (amd64)","docker://20.10.24"],"object":{"metadata":{"name":"n"}}},{"cells":[1,null,{}],"object":{"metadata":{"name":"m"}}}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		nodes, _, err := readTable(raw)
		if err != nil {
			return
		}
		if rows := inventory.FromNodes(nodes); len(rows) != len(nodes) {
			t.Errorf("%d rows of %d nodes", len(rows), len(nodes))
		}
	})
}
