package steps

import (
	"errors"
)

// errNoManager is for a host on which a package manager was found when it was inspected.
var errNoManager = errors.New("the host's package manager is not there any more")
