package layers

import (
	"slices"
	"strings"
	"testing"
)

// plugin lists what each package of the plugin's side may import of this repository: nothing else is allowed. Each stands after those that it imports.
var plugin = []struct {
	name string
	may  []string
}{
	{"redact", nil},
	{"paging", nil},
	{"protocol", words("redact")},
	{"api/v1alpha1", words("protocol")},
	{"untrusted", words("protocol")},
	{"nodewatch", nil},
	{"nodestate", words("protocol untrusted")},
	{"inventory", words("nodestate untrusted")},
	{"oldapi", words("inventory paging")},
	{"assess", words("inventory nodestate protocol")},
	{"drain", words("nodewatch oldapi")},
	{"nodejob", words("nodestate nodewatch oldapi paging protocol untrusted")},
	{"claim", words("nodejob nodestate untrusted")},
	{"jobnamespace", words("claim nodejob nodestate")},
	{"access", words("drain jobnamespace nodejob")},
	{"rollout", words("claim nodejob nodestate untrusted")},
	{"rolloutrecord", words("api/v1alpha1 claim nodejob nodestate rollout untrusted")},
	{"uninstall", words("access claim jobnamespace nodejob nodestate paging rolloutrecord")},
	{"preflight", words("claim drain inventory nodejob nodestate protocol")},
	{"runevidence", words("nodejob paging untrusted")},
	{"nodeswitch", words("claim drain inventory jobnamespace nodejob nodestate nodewatch oldapi paging preflight protocol redact runevidence untrusted")},
	{"render", words("api/v1alpha1 assess nodeswitch protocol untrusted")},
	{"cli", words("access oldapi protocol untrusted")},
	{"plugin/status", words("api/v1alpha1 claim cli inventory nodestate untrusted")},
	{"plugin", words("access api/v1alpha1 assess claim cli drain inventory nodejob nodestate nodeswitch nodewatch oldapi plugin/status preflight protocol render rollout rolloutrecord uninstall untrusted")},
}

// TestPluginLayers: a package of the plugin's side imports only those that it may, which come before it.
func TestPluginLayers(t *testing.T) {
	may, before := map[string][]string{}, []string{}
	for _, p := range plugin {
		for _, i := range p.may {
			if !slices.Contains(before, i) {
				t.Errorf("pkg/%s may import pkg/%s, which comes after it", p.name, i)
			}
		}
		may[p.name], before = p.may, append(before, p.name)
	}
	for name, imports := range importsOf(t) {
		name, ok := strings.CutPrefix(name, "pkg/")
		if !ok || strings.HasPrefix(name, "agent") {
			continue
		}
		allowed, known := may[name]
		if !known && !slices.Contains(shared, name) {
			t.Errorf("pkg/%s has no place: add it to test/layers", name)
			continue
		}
		for _, i := range imports {
			sub, ours := strings.CutPrefix(i, module+"pkg/")
			if ours && !slices.Contains(allowed, sub) && !slices.Contains(shared, sub) {
				t.Errorf("pkg/%s imports pkg/%s, and may import: %s", name, sub, strings.Join(allowed, ", "))
			}
		}
	}
}
