package kubelet

import "testing"

func TestPlanLogs(t *testing.T) {
	for name, c := range map[string]struct {
		config, args string
		size         int64
		files        int
		want         string // empty: no change
	}{
		"Docker's":           {config: "kind: K\n", size: 10_000_000, files: 3, want: "kind: K\ncontainerLogMaxSize: 10M\ncontainerLogMaxFiles: 3\n"},
		"no number of files": {config: "kind: K\n", size: 2_000_000_000, want: "kind: K\ncontainerLogMaxSize: 2G\ncontainerLogMaxFiles: 2\n"},
		"odd size":           {config: "kind: K\n", size: 1001, files: 2, want: "kind: K\ncontainerLogMaxSize: 2k\ncontainerLogMaxFiles: 2\n"},
		"no rotation":        {config: "kind: K\n"},
		"the kubelet's own":  {config: "containerLogMaxSize: 5Mi\ncontainerLogMaxFiles: 4\n", size: 1000, files: 2},
		"one of its own":     {config: "containerLogMaxFiles: 4\n", size: 1000, files: 2, want: "containerLogMaxFiles: 4\ncontainerLogMaxSize: 1k\n"},
		"its flag":           {config: "kind: K\n", args: "--container-log-max-size=1Mi", size: 1000, files: 2, want: "kind: K\ncontainerLogMaxFiles: 2\n"},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"kubelet", "--config=/c"}
			if c.args != "" {
				args = append(args, c.args)
			}
			s := Setup{Args: args, LogMaxSize: c.size, LogMaxFiles: c.files, Read: func(string) ([]byte, error) { return []byte(c.config), nil }}
			changed := map[string][]byte{}
			if err := s.planLogs(changed, parseFlags(args)); err != nil {
				t.Fatal(err)
			}
			if got := string(changed["/c"]); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
