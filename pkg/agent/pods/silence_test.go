package pods

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestWatched: what waits for the kubelet ends when the runtime is silent, and only then.
func TestWatched(t *testing.T) {
	const patience = 200 * time.Millisecond
	own := errors.New("not Ready")
	wait := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for _, test := range []struct {
		name   string
		ask    func(n int) error // of the n-th call; nil: no answer ever
		do     func(context.Context) error
		silent bool
		want   string
	}{
		{"silent from the start", nil, wait, true, "containerd has not answered for 200ms"},
		{"falls silent", func(n int) error {
			if n < 3 {
				return nil
			}
			return errors.New("connection refused")
		}, wait, true, "connection refused"},
		{"silent for a moment, as in a restart", func(n int) error {
			if n < 3 {
				return errors.New("connection refused")
			}
			return nil
		}, func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(3 * patience):
				return nil
			}
		}, false, ""},
		{"another failure", nil, func(context.Context) error { return own }, false, "not Ready"},
		{"done", nil, func(context.Context) error { return nil }, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int32
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			silent, err := watched(ctx, func(ctx context.Context) error {
				if test.ask == nil {
					return wait(ctx)
				}
				return test.ask(int(calls.Add(1)))
			}, patience, test.do)
			if silent != test.silent || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("silent %t, %v", silent, err)
			}
		})
	}
}
