package nodejob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/untrusted"
)

// releaseTimeout bounds Release: a Job that does not wait takes about as long as an exec that fails.
const releaseTimeout = 5 * time.Second

// MayExec reports whether the user may exec into pods. It is asked beforehand, since a refused upgrade is recognised by its text alone; in doubt
// it is true.
func (r *Runner) MayExec(ctx context.Context) bool {
	if r.mayExec.Load() {
		return true
	}
	review, err := r.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: "create", Resource: "pods", Subresource: "exec", Namespace: Namespace,
		}},
	}, metav1.CreateOptions{})
	r.mayExec.Store(err == nil && review.Status.Allowed)
	return err != nil || review.Status.Allowed
}

// Release lets the pod of a Job that waits ask its host for the phase. Where it was sent there, the pod may have done so in spite of an error; a
// Job that does not wait, in its place, asks for the same.
func (r *Runner) Release(ctx context.Context, spec protocol.Spec) (sent bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, releaseTimeout, fmt.Errorf("no answer after %s", releaseTimeout))
	defer cancel()
	flag, err := specFlag(spec)
	if err != nil {
		return false, err
	}
	pod, err := r.PhasePod(ctx, spec)
	if err != nil {
		return false, err
	}
	if pod == nil {
		return false, errors.New("there is no pod that waits")
	}
	_, err = r.execIn(ctx, maxAnswer, pod.Name, agentName, agentCommand, "ask", hostFlag, flag)
	return true, err
}

// maxAnswer bounds what a command prints that says a line or two, in bytes.
const maxAnswer = 64 << 10

// execIn runs a command in a pod, as `kubectl exec` does it: over a WebSocket, or over SPDY where server or proxy have no other. It returns
// what the command prints; nothing, and more than most bytes, are errors.
func (r *Runner) execIn(ctx context.Context, most int64, pod, container string, command ...string) ([]byte, error) {
	config := rest.CopyConfig(r.Config)
	config.GroupVersion, config.APIPath = &corev1.SchemeGroupVersion, "/api"
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, err
	}
	url := client.Post().Resource("pods").Namespace(Namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	out := &untrusted.Buffer{What: "what the command in pod " + pod + " prints", Most: most}
	errOut := &untrusted.Buffer{What: "what the command in pod " + pod + " complains of", Most: maxAnswer}
	if err = webSocketExec(ctx, config, url.String(), out, errOut); httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err) {
		err = spdyExec(ctx, config, url, out, errOut)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, errors.Join(context.Cause(ctx), err)
	case err != nil:
		return nil, complaint(err, errOut.Bytes())
	case len(bytes.TrimSpace(out.Bytes())) == 0:
		return nil, errors.New("the command's output is empty")
	}
	return out.Bytes(), nil
}

// complaint is the error of a command with what it printed for it. The node may have written either.
func complaint(err error, printed []byte) error {
	text := untrusted.Line(err.Error(), maxReason)
	if more := untrusted.Line(string(printed), maxReason); more != "" {
		text += ": " + more
	}
	return &execError{text, err}
}

type execError struct {
	text string
	err  error
}

func (e *execError) Error() string { return e.text }
func (e *execError) Unwrap() error { return e.err }
