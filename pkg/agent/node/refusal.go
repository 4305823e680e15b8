package node

import "fmt"

// Refusal is a reason not to switch this node, and what a person can do about it.
type Refusal struct{ message, hint string }

func (r *Refusal) Error() string { return r.message }

// Hint is what a person can do; empty where that is not known.
func (r *Refusal) Hint() string { return r.hint }

// Refuse makes a Refusal of a hint and a message.
func Refuse(hint, format string, args ...any) error {
	return &Refusal{message: fmt.Sprintf(format, args...), hint: hint}
}

// WithHint adds to an error what a person can do about it.
func WithHint(err error, hint string) error { return &hintError{err, hint} }

type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }
func (e *hintError) Hint() string  { return e.hint }
