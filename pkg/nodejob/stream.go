package nodejob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	gorilla "github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	protocols "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/transport/websocket"
	"k8s.io/client-go/util/exec"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// maxStatus bounds how a command ended, as the node reports it, in bytes. client-go reads that without a bound.
const maxStatus = 64 << 10

// webSocketExec runs a command over a WebSocket. What is written to out and errOut is bounded by these.
func webSocketExec(ctx context.Context, config *rest.Config, address string, out, errOut io.Writer) error {
	transport, holder, err := websocket.RoundTripperFor(config)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	conn, err := websocket.Negotiate(transport, holder, request, protocols.StreamProtocolV5Name)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	status := &untrusted.Buffer{What: "the report of how the command ended", Most: maxStatus}
	streams := map[byte]io.Writer{protocols.StreamStdOut: out, protocols.StreamStdErr: errOut, protocols.StreamErr: status}
	for {
		_, message, err := conn.NextReader()
		switch {
		case gorilla.IsCloseError(err, gorilla.CloseNormalClosure):
			return exitError(status.Bytes())
		case err != nil:
			return fmt.Errorf("read what the command prints: %w", err)
		}
		var id [1]byte
		if _, err := io.ReadFull(message, id[:]); err != nil {
			return fmt.Errorf("read what the command prints: %w", err)
		}
		if stream := streams[id[0]]; stream != nil {
			if _, err := io.Copy(stream, message); err != nil {
				return fmt.Errorf("read what the command prints: %w", err)
			}
		}
	}
}

// exitError is the error of a command that has ended, from the Status that is sent for it; nil if the command succeeded.
func exitError(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	var status metav1.Status
	if err := json.Unmarshal(data, &status); err != nil {
		return fmt.Errorf("read how the command ended: %w", err)
	}
	if status.Status == metav1.StatusSuccess {
		return nil
	}
	if status.Reason == protocols.NonZeroExitCodeReason && status.Details != nil {
		for _, cause := range status.Details.Causes {
			if code, err := strconv.ParseUint(cause.Message, 10, 8); cause.Type == protocols.ExitCodeCauseType && err == nil {
				return exec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: int(code)}
			}
		}
	}
	return errors.New(untrusted.Line(status.Message, maxReason))
}

// spdyExec is the same over SPDY, for servers and proxies that have no other.
func spdyExec(ctx context.Context, config *rest.Config, address *url.URL, out, errOut io.Writer) error {
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	executor, err := remotecommand.NewSPDYExecutorForTransports(transport, boundedUpgrader{upgrader, cancel}, http.MethodPost, address)
	if err != nil {
		return err
	}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: breaker{out, cancel}, Stderr: breaker{errOut, cancel}})
	var tooMuch *untrusted.TooMuchError
	if errors.As(context.Cause(ctx), &tooMuch) {
		return tooMuch
	}
	return err
}

// breaker ends an exec when a write fails: client-go would log that, read on, and report success.
type breaker struct {
	io.Writer
	cancel context.CancelCauseFunc
}

func (b breaker) Write(p []byte) (int, error) {
	n, err := b.Writer.Write(p)
	if err != nil {
		b.cancel(err)
	}
	return n, err
}

// boundedUpgrader makes connections that end when more than maxStatus bytes come over the stream for errors.
type boundedUpgrader struct {
	spdy.Upgrader
	cancel context.CancelCauseFunc
}

func (u boundedUpgrader) NewConnection(response *http.Response) (httpstream.Connection, error) {
	conn, err := u.Upgrader.NewConnection(response)
	if err != nil {
		return nil, err
	}
	return boundedConnection{conn, u.cancel}, nil
}

type boundedConnection struct {
	httpstream.Connection
	cancel context.CancelCauseFunc
}

func (c boundedConnection) CreateStream(headers http.Header) (httpstream.Stream, error) {
	stream, err := c.Connection.CreateStream(headers)
	if err != nil || headers.Get(corev1.StreamType) != corev1.StreamTypeError {
		return stream, err
	}
	return &boundedStream{stream, c.cancel, maxStatus}, nil
}

type boundedStream struct {
	httpstream.Stream
	cancel context.CancelCauseFunc
	left   int
}

func (s *boundedStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if s.left -= n; s.left < 0 {
		err = &untrusted.TooMuchError{What: "the report of how the command ended", Most: maxStatus}
		s.cancel(err)
		return 0, err
	}
	return n, err
}
