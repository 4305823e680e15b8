package kubelet

import (
	"fmt"
	"strconv"
)

// quantity writes bytes as Kubernetes does with decimal suffixes, rounded up to a thousand: a plain number would not be a string in
// YAML.
func quantity(bytes int64) string {
	switch {
	case bytes%1_000_000_000 == 0:
		return strconv.FormatInt(bytes/1_000_000_000, 10) + "G"
	case bytes%1_000_000 == 0:
		return strconv.FormatInt(bytes/1_000_000, 10) + "M"
	default:
		return strconv.FormatInt((bytes+999)/1000, 10) + "k"
	}
}

// planLogs has the kubelet rotate logs as Docker did, which it leaves to Docker up to then. Each of the two settings goes into
// --config, unless a flag or a config file says one.
func (s Setup) planLogs(changed map[string][]byte, flags []Flag) error {
	main, _ := lastFlag(flags, "config")
	if main == "" || s.LogMaxSize <= 0 {
		return nil
	}
	_, size := lastFlag(flags, "container-log-max-size")
	_, files := lastFlag(flags, "container-log-max-files")
	err := s.eachConfig(func(c config) {
		size = size || c.ContainerLogMaxSize != ""
		files = files || c.ContainerLogMaxFiles != nil
	})
	if err != nil {
		return err
	}
	data, ok := changed[main]
	if !ok {
		if data, err = s.Read.bounded(main); err != nil {
			return fmt.Errorf("read kubelet config: %w", err)
		}
	}
	edited := data
	if !size {
		edited, err = setYAML(edited, "containerLogMaxSize", quantity(s.LogMaxSize))
	}
	// Docker keeps one file unless max-file says more; the kubelet, at least two.
	if err == nil && !files {
		edited, err = setYAML(edited, "containerLogMaxFiles", strconv.Itoa(max(s.LogMaxFiles, 2)))
	}
	if err != nil {
		return fmt.Errorf("edit kubelet config %s: %w", main, err)
	}
	if string(edited) != string(data) {
		changed[main] = edited
	}
	return nil
}
