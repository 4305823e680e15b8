package nodejob

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	gorilla "github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	protocols "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/exec"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// command is a node's answer to an exec.
type command func(out, errOut io.Writer) error

func (c command) ExecInContainer(_ context.Context, _, _, _ string, _ []string, _ io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return c(out, errOut)
}

type exitCode int

func (e exitCode) Error() string   { return "exit status" }
func (e exitCode) String() string  { return e.Error() }
func (e exitCode) Exited() bool    { return true }
func (e exitCode) ExitStatus() int { return int(e) }

// serveWebSocket is the API server's part: v5 of the protocol.
func serveWebSocket(t *testing.T, w http.ResponseWriter, r *http.Request, answer command) {
	upgrader := gorilla.Upgrader{Subprotocols: []string{protocols.StreamProtocolV5Name}}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	send := func(id byte) io.Writer {
		return writer(func(p []byte) error { return conn.WriteMessage(gorilla.BinaryMessage, append([]byte{id}, p...)) })
	}
	status := metav1.Status{Status: metav1.StatusSuccess}
	err = answer(send(protocols.StreamStdOut), send(protocols.StreamStdErr))
	var exit exitCode
	if errors.As(err, &exit) {
		cause := metav1.StatusCause{Type: protocols.ExitCodeCauseType, Message: strconv.Itoa(int(exit))}
		status = metav1.Status{Status: metav1.StatusFailure, Reason: protocols.NonZeroExitCodeReason, Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{cause}}}
	} else if err != nil {
		status = metav1.Status{Status: metav1.StatusFailure, Message: err.Error()}
	}
	_ = json.NewEncoder(send(protocols.StreamErr)).Encode(status) // who refuses to read more, hangs up
	_ = conn.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(gorilla.CloseNormalClosure, ""))
}

type writer func([]byte) error

func (w writer) Write(p []byte) (int, error) { return len(p), w(p) }

// TestExec has a node answer over both transports, also with more than anything that means well.
func TestExec(t *testing.T) {
	flood := func(w io.Writer) error {
		for range 300 {
			if _, err := io.WriteString(w, strings.Repeat("x", 1<<20)); err != nil {
				return err
			}
		}
		return nil
	}
	for _, test := range []struct {
		name    string
		answer  command
		out     string
		err     string
		tooMuch bool
		code    int
	}{
		{name: "output", answer: func(out, _ io.Writer) error { _, err := io.WriteString(out, "fine\n"); return err }, out: "fine\n"},
		{name: "nothing", answer: func(_, _ io.Writer) error { return nil }, err: "output is empty"},
		{name: "exit code", answer: func(_, errOut io.Writer) error {
			_, _ = io.WriteString(errOut, "no \x1b[2Jsuch file\n")
			return exitCode(3)
		}, err: `no \u001b[2Jsuch file`, code: 3},
		{name: "error", answer: func(_, _ io.Writer) error { return errors.New("container \x1b[2Jgone\nhint: rm") }, err: `container \u001b[2Jgone hint: rm`},
		{name: "flood of output", answer: func(out, _ io.Writer) error { return flood(out) }, err: "which no agent's is", tooMuch: true},
		{name: "flood of complaints", answer: func(_, errOut io.Writer) error { return flood(errOut) }, err: "which no agent's is", tooMuch: true},
		{name: "flood of an error", answer: func(_, _ io.Writer) error { return errors.New(strings.Repeat("x", 2*maxStatus)) }, err: "which no agent's is", tooMuch: true},
	} {
		for _, transport := range []string{"websocket", "spdy"} {
			t.Run(test.name+" over "+transport, func(t *testing.T) {
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
						if transport == "websocket" {
							serveWebSocket(t, w, r, test.answer)
						} else {
							http.Error(w, "no websockets here", http.StatusBadRequest)
						}
						return
					}
					if transport == "websocket" {
						t.Error("SPDY was used")
					}
					options := &remotecommand.Options{Stdout: true, Stderr: true}
					remotecommand.ServeExec(w, r, test.answer, "pod", "", "agent", r.URL.Query()["command"], options, time.Minute, time.Minute, remotecommand.SupportedStreamingProtocols)
				}))
				defer server.Close()
				runner := &Runner{Config: &rest.Config{Host: server.URL}}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				out, err := runner.execIn(ctx, 1<<20, "pod", "agent", "cat")
				if test.err == "" {
					if err != nil || string(out) != test.out {
						t.Errorf("%q, %v", out, err)
					}
					return
				}
				var tooMuch *untrusted.TooMuchError
				var exit exec.CodeExitError
				isTooMuch, hasCode := errors.As(err, &tooMuch), errors.As(err, &exit)
				if err == nil || !strings.Contains(err.Error(), test.err) || len(err.Error()) > 2*maxReason || isTooMuch != test.tooMuch || hasCode != (test.code != 0) || exit.Code != test.code {
					t.Errorf("%.300v", err)
				}
			})
		}
	}
}
