package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/engine"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/host"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/journal"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/kubelet"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/unit"
	"github.com/kubectl-runtime/kubectl-runtime/pkg/protocol"
)

// status is what `runtime-agent status -o json` prints.
type status struct {
	Version int    `json:"version"`
	Run     string `json:"run,omitempty"`
	Node    string `json:"node,omitempty"`
	engine.Overview
	// Unusable is why the journal tells nothing.
	Unusable string `json:"unusable,omitempty"`
	// AtWork reports whether the host unit runs, KubeletHeld whether the kubelet is kept from starting.
	AtWork      bool `json:"atWork"`
	KubeletHeld bool `json:"kubeletHeld"`
	// Kubelet is the kubelet's ActiveState, Endpoint the runtime that its files name; empty if it cannot be told.
	Kubelet  string `json:"kubelet,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	// Next says what to type.
	Next string `json:"next"`

	// agent is how the agent is called on this host: where it is installed depends on the host.
	agent string
}

// readStatus reads all there is to know without changing anything. What cannot be read is left out. agent is the path of this program.
func readStatus(ctx context.Context, layout unit.Layout, systemd host.Systemd, agent, machine string, endpoint func() (string, error)) (status, error) {
	s := status{Version: protocol.Version, agent: agent, KubeletHeld: !host.Absent(layout.Hold())}
	if state, err := systemd.State(ctx, kubelet.Unit); err == nil {
		s.Kubelet = state.Active
	}
	if state, err := systemd.State(ctx, host.Unit); err == nil {
		s.AtWork = state.Running()
	}
	if is, err := endpoint(); err == nil {
		s.Endpoint = is
	}
	run, err := layout.Find()
	var records []journal.Record
	if err == nil && run != "" {
		s.Run = run
		var id journal.Identity
		id, records, err = journal.ReadHere(layout.RunDir(run), machine)
		s.Node = id.Node
	}
	if err != nil && !errors.Is(err, journal.ErrUnusable) {
		return status{}, err
	}
	s.Overview = engine.Survey(records)
	s.Next = s.next()
	if err != nil {
		s.Unusable = err.Error()
		s.Next = "look at the journal yourself"
		var hinted interface {
			error
			Hint() string
		}
		if errors.As(err, &hinted) {
			s.Next = hinted.Hint()
		}
	}
	return s, nil
}

// next is the command to type next.
func (s status) next() string {
	var last engine.PhaseResult
	if n := len(s.Results); n > 0 {
		last = s.Results[n-1]
	}
	node := s.Node
	if node == "" {
		node = "NODE"
	}
	switch {
	case s.Open != "" && s.AtWork:
		return "journalctl -fu " + host.Unit + " (it is at work and ends by itself)"
	case s.Open != "":
		return s.agent + " resume"
	case last.Result.Outcome == protocol.OutcomeBroken, last.Phase == protocol.PhaseRollback && last.Result.Outcome == protocol.OutcomeRefused:
		return "cure the cause, then " + s.agent + " rollback"
	case s.KubeletHeld:
		return s.agent + " rollback"
	case !s.Standing:
		return "kubectl runtime switch " + node
	case last.Phase == protocol.PhasePrepare:
		return "kubectl runtime switch " + node + " resumes the run; " + s.agent + " rollback undoes the preparation"
	default:
		return "nothing is left to do; " + s.agent + " rollback goes back"
	}
}

func (s status) print(out io.Writer, format string) error {
	if format == "json" {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(s)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value == "" {
			value = "<unknown>"
		}
		fmt.Fprintf(w, "%s:\t%s\n", name, value)
	}
	if s.Run == "" && s.Unusable == "" {
		line("Run", "<none>")
	} else {
		line("Run", s.Run)
		line("Node", s.Node)
	}
	if s.Unusable != "" {
		line("Journal", strings.TrimPrefix(s.Unusable, "journal "))
	}
	for _, r := range s.Results {
		line("Ended", fmt.Sprintf("%s %s at %s: %s", r.Phase, r.Result.Outcome, r.Time.Format(time.RFC3339), r.Result.Message))
	}
	if s.Open != "" {
		way := "goes forward until " + s.Deadline.Format(time.RFC3339) + ", then it is undone"
		if s.Undoing != nil || s.Open == protocol.PhaseRollback {
			way = "is being undone"
		}
		line("Open", fmt.Sprintf("%s %s", s.Open, way))
	}
	if s.LastError != nil {
		line("Last error", fmt.Sprintf("%s: %s", orNone(s.LastError.Step), s.LastError.Message))
	}
	line("Host unit", map[bool]string{true: "at work", false: "not at work"}[s.AtWork])
	held := map[bool]string{true: ", held", false: ""}[s.KubeletHeld]
	line("Kubelet", s.Kubelet+held)
	line("Runtime set", s.Endpoint)
	line("Next", s.Next)
	if len(s.Steps) > 0 {
		fmt.Fprintln(w)
		fmt.Fprintln(w, "STEP\tPHASE\tSTATE\tSINCE")
		for _, step := range s.Steps {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", step.ID, step.Phase, step.State, step.Time.Format(time.RFC3339))
		}
	}
	return w.Flush()
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
