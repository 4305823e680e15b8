package hostile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/nodejob"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
	"github.com/kubectl-runtime/kubectl-runtime/test/hollow"
)

// log is what an agent prints, with the exit codes of what asks for it in a phase, and a part of what is then said.
type log struct {
	write func(write func([]byte) error, spec protocol.Spec) error
	says  string
	codes map[protocol.Phase]int
}

// The phases that a log is printed in, with the exit codes where it says nothing that can be believed.
var (
	inSwitch  = map[protocol.Phase]int{protocol.PhasePrepare: 1, protocol.PhaseCutover: 5, protocol.PhaseRollback: 5}
	inService = map[protocol.Phase]int{protocol.PhasePlan: 1, protocol.PhasePrepare: 1}
	asRefused = map[protocol.Phase]int{protocol.PhasePlan: 1, protocol.PhasePrepare: 2}
	inPlan    = map[protocol.Phase]int{protocol.PhasePlan: 1}
)

// logs are those of agents that lie.
var logs = map[string]log{
	"one-line": {oneLine, "larger than 32768 KiB", inPlan},
	"many-lines": {func(write func([]byte) error, _ protocol.Spec) error {
		return repeat(write, 100<<20, func(int) string { return "level=info msg=\"nothing that an agent says\"\n" })
	}, "larger than 32768 KiB", map[protocol.Phase]int{protocol.PhasePrepare: 1, protocol.PhaseRollback: 5}},
	"newer-protocol": {lines(`{"v":2,"seq":1,"run":RUN,"phase":PHASE,"result":{"outcome":"succeeded"}}`), "version 2 is not 1", inSwitch},
	"other-node": {lines(
		`{"v":1,"seq":1,"run":"20260101-000000-other","phase":PHASE,"facts":{"os":"x"}}`, `{"v":1,"seq":2,"run":"20260101-000000-other","phase":PHASE,"result":{"outcome":"succeeded"}}`,
	), "without a result", inService},
	"odd-run": {lines(`{"v":1,"seq":1,"run":"../../x","phase":PHASE,"result":{"outcome":"succeeded"}}`), "is not made of", inService},
	"deep": {lines(
		`{"v":1,"seq":1,"run":RUN,"phase":PHASE,"x":`+strings.Repeat("[", 30<<10)+`}`, strings.Repeat(`{"step":`, 7<<10), refused,
	), "enough", asRefused},
	"numbers": {lines(
		`{"v":1,"seq":1e400,"run":RUN,"phase":PHASE}`, `{"v":1,"seq":1.5}`, `{"v":1,"seq":99999999999999999999}`, `{"v":1e99,"seq":1}`,
		`{"v":1,"seq":2,"run":RUN,"phase":PHASE,"time":"9999-12-31T23:59:59Z","step":{"id":"a","title":"b","state":"progress","done":-9223372036854775808,"total":9223372036854775807}}`,
		`{"v":1,"seq":3,"run":RUN,"phase":PHASE,"time":"0001-01-01T00:00:00Z","step":{"id":"a","title":"b","state":"done","elapsedMillis":9223372036854775807}}`,
		`{"v":1,"seq":9223372036854775807,"run":RUN,"phase":PHASE,"alive":true,"time":"2026-13-77T99:99:99Z"}`, refused,
	), "enough", asRefused},
	"million-findings": {func(write func([]byte) error, spec protocol.Spec) error {
		return repeat(write, 100<<20, func(n int) string { return finding(spec, n) })
	}, "larger than 8192 KiB", inPlan},
	// As many as are not too much in bytes: a plan says more of each than the node did.
	"many-findings": {func(write func([]byte) error, spec protocol.Spec) error {
		err := repeat(write, 7<<20, func(n int) string { return finding(spec, n) })
		return errors.Join(err, lines(`{"v":1,"seq":9000000,"run":RUN,"phase":PHASE,"result":{"outcome":"succeeded"}}`)(write, spec))
	}, "more than", inPlan},
}

func finding(spec protocol.Spec, n int) string {
	return fmt.Sprintf(`{"v":1,"seq":%d,"run":%q,"phase":"plan","finding":{"check":"host-docker","message":"%d"}}`+"\n", n, spec.Run, n)
}

// refused ends a phase, so that its end can be told from another.
const refused = `{"v":1,"seq":4,"run":RUN,"phase":PHASE,"result":{"outcome":"refused","message":"enough","elapsedMillis":-1}}`

// lines writes lines with RUN and PHASE as asked for.
func lines(list ...string) func(func([]byte) error, protocol.Spec) error {
	return func(write func([]byte) error, spec protocol.Spec) error {
		text := strings.NewReplacer("RUN", fmt.Sprintf("%q", spec.Run), "PHASE", fmt.Sprintf("%q", spec.Phase)).Replace(strings.Join(list, "\n") + "\n")
		return write([]byte(text))
	}
}

// oneLine is 100 MiB without an end of a line.
func oneLine(write func([]byte) error, _ protocol.Spec) error { return flood(write, 100<<20) }

// repeat writes lines of about a number of bytes together.
func repeat(write func([]byte) error, size int, line func(n int) string) error {
	var block []byte
	for n := 1; size > 0; n++ {
		if block = append(block, line(n)...); len(block) > 64<<10 || len(block) > size {
			if err := write(block); err != nil {
				return errGone
			}
			size, block = size-len(block), block[:0]
		}
	}
	return nil
}

// agent is the name of the agent's containers.
const agent = "runtime-agent"

// answers has the kubelet answer for the logs of a container of a phase's pods.
func answers(container string, phase protocol.Phase, print func(func([]byte) error, protocol.Spec) error) func(*hollow.Node) {
	return func(h *hollow.Node) {
		h.Script[phase] = func(*hollow.Node, protocol.Spec) {}
		h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
			parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
			if parts[0] != "containerLogs" || parts[3] != container {
				return false
			}
			pod, err := h.Client.CoreV1().Pods(parts[1]).Get(r.Context(), parts[2], metav1.GetOptions{})
			if err != nil || container == agent && pod.Labels[nodejob.LabelPhase] != string(phase) {
				return false
			}
			_ = print(writerOf(h, w), hollow.SpecOf(h.T, pod.Spec.Containers[0].Args))
			return true
		}
	}
}

// execs has commands of the agent's print something else.
func execs(command string, print func(func([]byte) error) error) func(*hollow.Node) {
	return func(h *hollow.Node) {
		h.Exec = func(args []string, out, _ io.Writer) (bool, error) {
			if args[1] != command {
				return false, nil
			}
			return true, print(writerOf(h, out))
		}
	}
}

// writerOf writes until the client has gone, or the test ends.
func writerOf(h *hollow.Node, w io.Writer) func([]byte) error {
	ctx := h.T.Context()
	return func(p []byte) error {
		_, err := w.Write(p)
		return errors.Join(err, context.Cause(ctx))
	}
}
