package steps

import (
	"context"
	"fmt"
)

// fakeUnits is systemctl show over what it prints for each unit; kubelet --version and its like are there by program.
type fakeUnits map[string]string

func (f fakeUnits) Run(_ context.Context, name string, args ...string) (string, error) {
	if name == "systemctl" {
		name = args[len(args)-1]
	}
	out, ok := f[name]
	if !ok {
		return "", fmt.Errorf("%s %q: not expected", name, args)
	}
	return out, nil
}
