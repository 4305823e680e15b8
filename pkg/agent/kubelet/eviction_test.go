package kubelet

import (
	"fmt"
	"strings"
	"testing"
)

func TestDiskThresholds(t *testing.T) {
	const config = "/var/lib/kubelet/config.yaml"
	for _, test := range []struct {
		name, config, more, args string
		want                     string // error where it begins with !
	}{
		{"nothing said", "", "", "", "nodefs.available<10%=100 imagefs.available<15%=150"},
		{"others said", "evictionHard: {memory.available: 100Mi}", "", "", ""},
		{"others said, and merged", "evictionHard: {imagefs.available: 5%}\nmergeDefaultEvictionSettings: true", "", "", "nodefs.available<10%=100 imagefs.available<5%=50"},
		{"said", "evictionHard: {imagefs.available: 20%, nodefs.available: 200}", "", "", "nodefs.available<200=200 imagefs.available<20%=200"},
		{"soft", "evictionSoft: {nodefs.available: 30%}", "", "", "nodefs.available<10%=100 nodefs.available<30%=300 imagefs.available<15%=150"},
		{"switched off", "evictionHard: {imagefs.available: 0%, nodefs.available: 100%}", "", "", "nodefs.available<100%=0 imagefs.available<0%=0"},
		{"said twice", "evictionHard: {imagefs.available: 20%, nodefs.available: 1Ki}", "evictionHard: {imagefs.available: 1%}", "", "nodefs.available<1Ki=1024 imagefs.available<1%=10"},
		{"by a flag", "evictionHard: {imagefs.available: 20%}", "", "--eviction-hard=nodefs.available<1.5k,memory.available<1Gi", "nodefs.available<1.5k=1500"},
		{"by two flags", "", "", "--eviction-hard= --eviction-soft=imagefs.available<2e3", "imagefs.available<2e3=2000"},
		{"no quantity", "evictionHard: {nodefs.available: many}", "", "", `!the kubelet's eviction threshold nodefs.available<many: "many" is not a quantity`},
		{"no share", "evictionHard: {nodefs.available: 101%}", "", "", `!the kubelet's eviction threshold nodefs.available<101%: "101%" is not a share`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := Setup{
				Args:          append([]string{"kubelet", "--config=" + config, "--config-dir=/more"}, strings.Fields(test.args)...),
				Read:          reader(map[string]string{config: test.config, "/more/1.conf": test.more}),
				ListConfigDir: func(string) ([]string, error) { return []string{"/more/1.conf"}, nil },
			}
			thresholds, err := s.DiskThresholds()
			var got []string
			for _, threshold := range thresholds {
				bytes, err := threshold.Bytes(1000)
				if err != nil {
					t.Error(err)
				}
				got = append(got, fmt.Sprintf("%s=%d", threshold, bytes))
			}
			text := strings.Join(got, " ")
			if err != nil {
				text = "!" + err.Error()
			}
			if text != test.want {
				t.Errorf("%s, want %s", text, test.want)
			}
		})
	}
}
