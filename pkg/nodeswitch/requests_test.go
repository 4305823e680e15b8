package nodeswitch

import (
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/apiserver"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

const (
	// maxRequests bounds those of the switch of a node without DaemonSets, with three pods to evict.
	maxRequests = 60
	// maxWhileWaiting bounds the requests of 20 s in which nothing happens: the claim is renewed twice at most, and a log that said nothing is asked for
	// again.
	maxWhileWaiting = 4
)

// TestRequests counts what the plugin asks the API server for in one switch with three pods to evict, a preparation of 20 s, a cutover of 5 s and a
// soak of 10 s: the figure in docs/performance.md.
func TestRequests(t *testing.T) {
	t.Parallel()
	s := apiserver.Own(t, apiserver.Version()) // other tests' runs change the namespace, too
	const name = "requests"
	h := hollow.New(t, s, name)
	var mu sync.Mutex
	counts, total := map[string]int{}, 0
	asked := func() int {
		mu.Lock()
		defer mu.Unlock()
		return total
	}
	h.Script[protocol.PhasePrepare] = func(h *hollow.Node, spec protocol.Spec) {
		h.Emit(spec, protocol.Event{Step: &protocol.Step{ID: "images", Title: "Images", State: protocol.StepStarted}})
		time.Sleep(2 * time.Second) // the log is read
		before := asked()
		time.Sleep(20 * time.Second)
		if n := asked() - before; n > maxWhileWaiting {
			t.Errorf("%d requests while the plugin waits, more than %d", n, maxWhileWaiting)
		}
		h.Succeed(spec)
	}
	h.Script[protocol.PhaseCutover] = func(h *hollow.Node, spec protocol.Spec) {
		time.Sleep(5 * time.Second)
		h.Succeed(spec)
	}
	for i := range 3 {
		createPod(t, s, name, fmt.Sprintf("requests-%d", i))
	}
	own := regexp.MustCompile(`/(runtime-[a-z]+)-[0-9a-z-]+|/` + name + `(-\d)?`)
	r := newRollout(s, &recorder{}, func(o *Options) { o.Soak = 10 * time.Second })
	withConfig(t, r, apiserver.Transport(s.Admin(), func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(request *http.Request) (*http.Response, error) {
			key := request.Method + " " + own.ReplaceAllString(request.URL.Path, "/$1*")
			for _, option := range []string{"watch", "dryRun", "fieldSelector"} {
				if request.URL.Query().Has(option) {
					key += " " + option
				}
			}
			mu.Lock()
			counts[key]++
			total++
			mu.Unlock()
			return next.RoundTrip(request)
		})
	}))
	report, err := r.Switch(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		lines = append(lines, fmt.Sprintf("%4d %s", counts[key], key))
	}
	if total > maxRequests {
		t.Errorf("%d requests, more than %d", total, maxRequests)
	}
	t.Logf("%d requests, out of service for %s:\n%s", total, report.OutOfService, strings.Join(lines, "\n")) // printed when the test fails
	nothingLeft(t, s, name)
}
