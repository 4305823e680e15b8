package containerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Rlimit is a resource limit of containers by its name in ulimit(1)'s manner, such as "nofile"; -1 is none.
type Rlimit struct {
	Name       string
	Soft, Hard int64
}

// BaseSpec returns a file for Settings.BaseSpec: the default that a containerd itself begins with, as its `ctr oci spec` prints it, with
// these limits and no others. With such a file CRI leaves limits alone, which otherwise it clears, so that containers would have
// containerd's own (WithoutDefaultSecuritySettings in internal/cri/opts/spec_opts.go of 2.4, pkg/cri/opts of 1.6). To give containerd
// these limits is no way: a Go program raises its soft limit of files to the hard one, and those built with Go up to 1.19.8 pass that on.
func BaseSpec(defaults []byte, limits []Rlimit) ([]byte, error) {
	decoder := json.NewDecoder(bytes.NewReader(defaults))
	decoder.UseNumber()
	var spec map[string]any
	if err := decoder.Decode(&spec); err != nil {
		return nil, fmt.Errorf("read what ctr oci spec prints: %w", err)
	}
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return nil, errors.New("read what ctr oci spec prints: it has no process")
	}
	number := func(n int64) uint64 {
		if n < 0 {
			return math.MaxUint64
		}
		return uint64(n)
	}
	rlimits := []map[string]any{}
	for _, l := range limits {
		rlimits = append(rlimits, map[string]any{"type": "RLIMIT_" + strings.ToUpper(l.Name), "soft": number(l.Soft), "hard": number(l.Hard)})
	}
	process["rlimits"] = rlimits
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write base spec: %w", err)
	}
	return append(data, '\n'), nil
}
