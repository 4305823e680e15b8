package kubelet

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
)

// The signals of the kubelet's eviction manager that go by free space. imagefs is the runtime's file system, nodefs that of --root-dir.
const (
	NodeFS  = "nodefs.available"
	ImageFS = "imagefs.available"
)

// defaultThresholds are DefaultEvictionHard (pkg/kubelet/eviction/defaults_linux.go), which a kubelet has without hard threshold.
var defaultThresholds = map[string]string{NodeFS: "10%", ImageFS: "15%"}

// Threshold is how much has to be free, or the kubelet reports DiskPressure: "15%" or a quantity such as "1Gi".
type Threshold struct{ Signal, Value string }

// String is how the kubelet's flags write it.
func (t Threshold) String() string { return t.Signal + "<" + t.Value }

// Bytes are how many bytes the threshold is on a file system of so many bytes; 0 where it is switched off.
func (t Threshold) Bytes(size int64) (int64, error) {
	share, ok := strings.CutSuffix(t.Value, "%")
	if !ok {
		return parseQuantity(t.Value)
	}
	percent, err := strconv.ParseFloat(share, 64)
	if err != nil || percent < 0 || percent > 100 {
		return 0, fmt.Errorf("%q is not a share", t.Value)
	}
	if percent == 100 { // as 0, it switches the threshold off (pkg/kubelet/eviction/helpers.go, parseThresholdStatement)
		return 0, nil
	}
	return int64(float64(size) * percent / 100), nil
}

// DiskThresholds are the kubelet's hard and soft eviction thresholds of free space. Whoever sets a hard one sets them all, unless the
// kubelet is to merge them with its defaults (mergeDefaultEvictionSettings, 1.32).
func (s Setup) DiskThresholds() ([]Threshold, error) {
	var hard map[string]string
	soft := map[string]string{}
	merged := false
	err := s.eachConfig(func(c config) {
		if c.EvictionHard != nil && hard == nil {
			hard = map[string]string{}
		}
		maps.Copy(hard, c.EvictionHard) // nothing into a nil map
		maps.Copy(soft, c.EvictionSoft)
		if c.MergeDefaultEvictionSettings != nil {
			merged = *c.MergeDefaultEvictionSettings
		}
	})
	if err != nil {
		return nil, err
	}
	if flag, ok := s.Flag("eviction-hard"); ok {
		hard = parseThresholds(flag)
	}
	if flag, ok := s.Flag("eviction-soft"); ok {
		soft = parseThresholds(flag)
	}
	var thresholds []Threshold
	for _, signal := range []string{NodeFS, ImageFS} {
		value, ok := hard[signal]
		if !ok && (hard == nil || merged) {
			value, ok = defaultThresholds[signal], true
		}
		if ok {
			thresholds = append(thresholds, Threshold{signal, value})
		}
		if value, ok := soft[signal]; ok {
			thresholds = append(thresholds, Threshold{signal, value})
		}
	}
	for _, t := range thresholds {
		if _, err := t.Bytes(0); err != nil {
			return nil, fmt.Errorf("the kubelet's eviction threshold %s: %w", t, err)
		}
	}
	return thresholds, nil
}

// parseThresholds reads "nodefs.available<10%,imagefs.available<15%".
func parseThresholds(flag string) map[string]string {
	thresholds := map[string]string{}
	for part := range strings.SplitSeq(flag, ",") {
		if signal, value, ok := strings.Cut(part, "<"); ok {
			thresholds[strings.TrimSpace(signal)] = strings.TrimSpace(value)
		}
	}
	return thresholds
}

// suffixes of quantities (apimachinery, pkg/api/resource), the longer ones first.
var suffixes = []struct {
	text  string
	times float64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50}, {"Ei", 1 << 60},
	{"m", 1e-3}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"P", 1e15}, {"E", 1e18},
}

func parseQuantity(text string) (int64, error) {
	number, times := text, 1.0
	for _, suffix := range suffixes {
		if short, ok := strings.CutSuffix(text, suffix.text); ok {
			number, times = short, suffix.times
			break
		}
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || value < 0 || value*times > 1<<62 {
		return 0, fmt.Errorf("%q is not a quantity", text)
	}
	return int64(value * times), nil
}
