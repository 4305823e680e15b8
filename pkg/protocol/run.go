package protocol

import (
	"fmt"
	"regexp"
)

// runForm is a DNS label: it is a directory's name on the host, a label's value in the cluster and a part of a file's name at the user's.
var runForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ParseRun reads a run's ID from where others may have written it: an annotation, an event, a command line.
func ParseRun(text string) (string, error) {
	if !runForm.MatchString(text) {
		return "", fmt.Errorf("run %.80q is not made of 1 to 63 lower-case letters, digits and dashes", text)
	}
	return text, nil
}
