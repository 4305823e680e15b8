package hollow

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
)

// kubelet is the kubelet's API as far as the plugin needs it.
type kubelet struct{ *Node }

func (h kubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	answer := h.Answer
	h.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch parts[0] {
	case "containerLogs":
		if h.PodStatus != nil {
			http.Error(w, "container is waiting to start", http.StatusBadRequest)
			return
		}
		if parts[3] == nodejob.PhaseCanary {
			if h.CanaryStatus != nil {
				http.Error(w, "container is waiting to start", http.StatusBadRequest)
				return
			}
			report := map[string]any{"canary": map[string]any{"checks": h.canaryChecks()}}
			_, _ = fmt.Fprintln(w, "a line that is no report")
			_ = json.NewEncoder(w).Encode(report)
			return
		}
		if strings.HasPrefix(parts[2], "runtime-evidence-") {
			h.T.Errorf("the log of %s was read", parts[2])
			return
		}
		h.serveLog(w, r, parts[2])
	case "exec":
		options, err := remotecommand.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		remotecommand.ServeExec(w, r, executor{h, parts[2]}, parts[2], "", parts[3], r.URL.Query()["command"], options, time.Minute, time.Minute, remotecommand.SupportedStreamingProtocols)
	case "stats":
		_, _ = io.WriteString(w, `{"pods":[{}]}`)
	default:
		http.NotFound(w, r)
	}
}

// executor runs commands in a pod.
type executor struct {
	h   kubelet
	pod string
}

func (e executor) ExecInContainer(_ context.Context, _, _, _ string, command []string, _ io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	e.h.mu.Lock()
	run := e.h.Exec
	e.h.mu.Unlock()
	if run != nil {
		if done, err := run(command, out, errOut); done {
			return err
		}
	}
	if command[1] == "ask" {
		if e.h.Deaf {
			return errors.New("the container is deaf")
		}
		e.h.mu.Lock()
		e.h.asked[e.pod] = true
		e.h.mu.Unlock()
	}
	if command[1] == "evidence" {
		return e.h.serveEvidence(out)
	}
	_, err := fmt.Fprintf(out, "ran %s\n", strings.Join(command, " "))
	return err
}

// serveEvidence is what the agent gathers: one file, with a secret that it has overlooked.
func (h kubelet) serveEvidence(w io.Writer) error {
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	text := "journal of " + h.Name + "\npassword: hunter2hunter2\n"
	return errors.Join(
		archive.WriteHeader(&tar.Header{Name: "run/journal.jsonl", Mode: 0o600, Size: int64(len(text))}),
		func() error { _, err := io.WriteString(archive, text); return err }(), archive.Close(), zip.Close(),
	)
}

// serveLog streams the event file from its beginning, until the container dies or ends.
func (h kubelet) serveLog(w http.ResponseWriter, r *http.Request, pod string) {
	h.mu.Lock()
	epoch := h.epoch
	h.mu.Unlock()
	_, _ = fmt.Fprintln(w, "supervise: following the host unit")
	for sent := 0; ; {
		h.mu.Lock()
		events, dead, ended := h.events[sent:], h.epoch != epoch, h.ended[pod]
		h.mu.Unlock()
		if dead {
			return
		}
		for _, event := range events {
			line, err := event.Encode()
			if err != nil {
				h.T.Error(err)
			}
			_, _ = w.Write(line)
		}
		sent += len(events)
		if flusher, ok := w.(http.Flusher); ok {
			flusher.Flush()
		}
		if ended {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
