package nodetest

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
)

// Container is one of Docker's. A real one cannot be made to outlive its signals.
type Container struct {
	Name, Kind          string // kind is the label of dockershim's, empty for a foreign container
	Survives, Immortal  bool   // what does not end it: docker stop; docker stop and docker kill
	Stopped, Killed, Up bool
	Uid                 string // the pod's
	OwnNetwork          bool
}

// Docker answers as much of Docker's API as the steps use.
type Docker struct {
	Socket string

	mu         sync.Mutex
	containers []*Container
	Told       func(container string) // of each that is stopped; optional
}

func (d *Docker) serve(w http.ResponseWriter, r *http.Request) {
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
			list = append(list, map[string]any{"Id": c.Name})
		}
		answer = list
	case strings.HasSuffix(r.URL.Path, "/images/json"):
		answer = []any{}
	default:
		at := slices.IndexFunc(d.containers, func(c *Container) bool { return c.Name == path[len(path)-2] })
		if at < 0 {
			http.NotFound(w, r)
			return
		}
		c := d.containers[at]
		switch action {
		case "json":
			labels := map[string]string{}
			if c.Kind != "" {
				labels["io.kubernetes.docker.type"], labels["io.kubernetes.pod.uid"] = c.Kind, c.Uid
			}
			network := "host"
			if c.OwnNetwork {
				network = "none"
			}
			answer = map[string]any{
				"Id": c.Name, "Name": "/" + c.Name, "State": map[string]any{"Running": c.Up},
				"HostConfig": map[string]any{"NetworkMode": network}, "Config": map[string]any{"Labels": labels},
			}
		case "stop":
			if d.Told != nil {
				d.Told(c.Name)
			}
			c.Stopped, c.Up = true, c.Up && (c.Survives || c.Immortal)
			w.WriteHeader(http.StatusNoContent)
			return
		case "kill":
			c.Killed, c.Up = true, c.Up && c.Immortal
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// StartDocker runs one with these containers until the test ends.
func StartDocker(t *testing.T, containers ...*Container) *Docker {
	t.Helper()
	d := &Docker{Socket: filepath.Join(t.TempDir(), "d"), containers: containers}
	for _, c := range containers {
		c.Up = true
	}
	listener, err := net.Listen("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(d.serve)}}
	server.Start()
	t.Cleanup(server.Close)
	return d
}
