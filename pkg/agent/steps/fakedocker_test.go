package steps

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// fakeContainer is a container of fakeDocker's. A real one cannot be made to outlive its signals.
type fakeContainer struct {
	name, kind          string // kind is the label of dockershim's, empty for a foreign container
	survives, immortal  bool   // what does not end it: docker stop; docker stop and docker kill
	stopped, killed, up bool
	uid                 string // the pod's
	ownNetwork          bool
}

// fakeDocker answers as much of Docker's API as the steps use.
type fakeDocker struct {
	socket string

	mu         sync.Mutex
	containers []*fakeContainer
	told       func(container string) // of each that is stopped; optional
}

func startFakeDocker(t *testing.T, containers ...*fakeContainer) *fakeDocker {
	t.Helper()
	d := &fakeDocker{socket: filepath.Join(t.TempDir(), "d"), containers: containers}
	for _, c := range containers {
		c.up = true
	}
	listener, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(d.serve)}}
	server.Start()
	t.Cleanup(server.Close)
	return d
}

func (d *fakeDocker) serve(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.Header().Set("Api-Version", "1.41")
	w.Header().Set("Content-Type", "application/json")
	var answer any
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch action := path[len(path)-1]; {
	case action == "_ping":
		return
	case action == "info":
		answer = map[string]any{"ServerVersion": "20.10.24"}
	case strings.HasSuffix(r.URL.Path, "/containers/json"):
		list := []map[string]any{}
		for _, c := range d.containers {
			list = append(list, map[string]any{"Id": c.name})
		}
		answer = list
	case strings.HasSuffix(r.URL.Path, "/images/json"):
		answer = []any{}
	default:
		at := slices.IndexFunc(d.containers, func(c *fakeContainer) bool { return c.name == path[len(path)-2] })
		if at < 0 {
			http.NotFound(w, r)
			return
		}
		c := d.containers[at]
		switch action {
		case "json":
			labels := map[string]string{}
			if c.kind != "" {
				labels["io.kubernetes.docker.type"], labels["io.kubernetes.pod.uid"] = c.kind, c.uid
			}
			network := "host"
			if c.ownNetwork {
				network = "none"
			}
			answer = map[string]any{
				"Id": c.name, "Name": "/" + c.name, "State": map[string]any{"Running": c.up},
				"HostConfig": map[string]any{"NetworkMode": network}, "Config": map[string]any{"Labels": labels},
			}
		case "stop":
			if d.told != nil {
				d.told(c.name)
			}
			c.stopped, c.up = true, c.up && (c.survives || c.immortal)
			w.WriteHeader(http.StatusNoContent)
			return
		case "kill":
			c.killed, c.up = true, c.up && c.immortal
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// hostWith is a Host whose inspection found what is given.
func hostWith(t *testing.T, found Found, spec protocol.Spec) *Host {
	t.Helper()
	memo, err := json.Marshal(found)
	if err != nil {
		t.Fatal(err)
	}
	records := []journal.Record{
		{Kind: journal.KindOpen, Phase: protocol.PhasePrepare},
		{Kind: journal.KindIntent, Phase: protocol.PhasePrepare, Step: inspectID, Memo: memo},
		{Kind: journal.KindDone, Phase: protocol.PhasePrepare, Step: inspectID},
	}
	return &Host{Spec: spec, RunDir: t.TempDir(), Records: func() []journal.Record { return records }}
}
