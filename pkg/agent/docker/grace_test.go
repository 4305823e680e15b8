package docker

import (
	"testing"
	"time"
)

func TestGrace(t *testing.T) {
	for label, want := range map[string]time.Duration{
		"1": time.Second, "0": 0, "30": 30 * time.Second, "3600": 30 * time.Second, "": 30 * time.Second, "-1": 30 * time.Second, "x": 30 * time.Second,
	} {
		c := Container{Labels: map[string]string{labelGrace: label}}
		if got := c.Grace(30 * time.Second); got != want {
			t.Errorf("label %q: %s, want %s", label, got, want)
		}
	}
}
