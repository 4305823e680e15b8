package rolloutrecord

import (
	"errors"
	"fmt"
)

// Change is a change of what people want of a rollout. Its error is a refusal.
type Change func(e *Entry) (Control, error)

// refusal says why a rollout cannot be paused, resumed or aborted.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// IsRefusal reports whether Store.Control failed since the rollout is in no state for the change; the error says in which.
func IsRefusal(err error) bool {
	var r *refusal
	return errors.As(err, &r)
}

func refuse(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// Pause has no node start until Resume.
func Pause(e *Entry) (Control, error) {
	switch {
	case e.State.Ended():
		return Control{}, refuse("%s", e.Conclusion())
	case e.Control.Aborted:
		return Control{}, refuse("it was aborted by %s", e.Control.By)
	case e.Control.Paused:
		return Control{}, refuse("it was already paused, by %s", e.Control.By)
	}
	return Control{Paused: true}, nil
}

// Resume undoes Pause.
func Resume(e *Entry) (Control, error) {
	switch {
	case e.State.Ended():
		return Control{}, refuse("%s", e.Conclusion())
	case e.Control.Aborted:
		return Control{}, refuse("it was aborted by %s", e.Control.By)
	case !e.Control.Paused:
		return Control{}, refuse("it is not paused")
	}
	return Control{}, nil
}

// Abort has no node start any more. The driver may be lost: if it only slept, it does not continue when it wakes.
func Abort(e *Entry) (Control, error) {
	switch {
	case e.State.Ended() && e.State != DriverLost && e.State != Continued:
		return Control{}, refuse("%s", e.Conclusion())
	case e.Control.Aborted:
		return Control{}, refuse("it was already aborted, by %s", e.Control.By)
	}
	return Control{Aborted: true}, nil
}
