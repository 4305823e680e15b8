package inspect

import (
	"context"
)

// check is one part of the inspection.
type check struct {
	// id is one of protocol.HostChecks: an error of run is a finding of it. The check is declared in the file with this name.
	id string
	// warning is the check that warnings are findings of; protocol.CheckNote if it is empty.
	warning string
	// needs are the IDs of the checks without whose result this one cannot run.
	needs []string
	run   func(context.Context, *inspection) error
}

// checks are in the order in which a switch runs them; it refuses with the first error.
func checks() []check {
	return []check{
		kubeletCheck,
		secondKubeletCheck,
		dockerCheck,
		foreignCheck,
		swarmCheck,
		dockerUnitCheck,
		dockerConfigCheck,
		containerdCheck,
		runtimesCheck,
		networkCheck,
		limitsCheck,
		carriedCheck,
		unitsCheck,
		killModeCheck,
		holdCheck,
		fileSystemCheck,
		spaceCheck,
		registriesCheck,
		apiCheck,
		kubeletFilesCheck,
	}
}
