package desired

import (
	"strings"
	"testing"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/agent/facts"
)

func TestKeepFor(t *testing.T) {
	for _, test := range []struct {
		name             string
		set              map[string]string
		sysctls, modules []string
	}{
		{"all", map[string]string{facts.WantedSysctls[0]: "1", facts.WantedSysctls[1]: "1", facts.WantedSysctls[2]: "1", facts.WantedSysctls[3]: "1"}, facts.WantedSysctls, []string{"overlay", "br_netfilter"}},
		{"no bridge module", map[string]string{facts.WantedSysctls[0]: "1"}, facts.WantedSysctls[:1], []string{"overlay"}},
		{"off stays off", map[string]string{facts.WantedSysctls[0]: "0", facts.WantedSysctls[1]: "0"}, nil, []string{"overlay", "br_netfilter"}},
	} {
		sysctls, modules := kernelFiles(facts.ReadKernel(func(name string) (string, bool) { value, ok := test.set[name]; return value, ok }))
		var want string
		for _, name := range test.sysctls {
			want += name + " = 1\n"
		}
		if _, got, _ := strings.Cut(string(sysctls), "\n"); got != want {
			t.Errorf("%s: %q", test.name, sysctls)
		}
		if _, got, _ := strings.Cut(string(modules), "\n"); got != strings.Join(test.modules, "\n")+"\n" {
			t.Errorf("%s: %q", test.name, modules)
		}
	}
}
