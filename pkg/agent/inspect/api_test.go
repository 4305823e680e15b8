package inspect

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/internal/nodetest"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/node"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// TestLookAtAPI: an API server that is missed for a moment is asked again, or the host would do without the proof that the node is Ready;
// one that refuses the credentials is not.
func TestLookAtAPI(t *testing.T) {
	for _, test := range []struct {
		name    string
		answers []int // the last one for all further requests
		asked   int
		usable  bool
	}{
		{"answers", []int{http.StatusOK}, 1, true},
		{"fails once", []int{http.StatusInternalServerError, http.StatusOK}, 2, true},
		{"is overloaded", []int{http.StatusTooManyRequests, http.StatusOK}, 2, true},
		{"ends the connection", []int{0, http.StatusOK}, 2, true},
		{"does not know the credentials", []int{http.StatusUnauthorized}, 1, false},
		{"refuses", []int{http.StatusForbidden}, 1, false},
		{"has no such node", []int{http.StatusNotFound}, 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasPrefix(r.URL.Path, "/api/v1/nodes/") {
					http.NotFound(w, r) // the Lease
					return
				}
				code := test.answers[min(asked, len(test.answers)-1)]
				asked++
				if code == 0 {
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(code)
				_, _ = fmt.Fprint(w, "{}")
			}))
			defer server.Close()
			path := nodetest.Kubeconfig(t, server.URL)
			i := &inspection{h: &node.Host{Spec: protocol.Spec{Node: "node-1"}}, setup: kubelet.Setup{Args: []string{"kubelet", "--kubeconfig=" + path}}}
			if err := checkAPI(t.Context(), i); err != nil {
				t.Fatal(err)
			}
			if usable := i.Kubeconfig != ""; usable != test.usable || asked != test.asked || usable != (len(i.Facts.Warnings) == 0) {
				t.Errorf("usable %t, asked %d times, warnings %q", usable, asked, i.Facts.Warnings)
			}
		})
	}
}
