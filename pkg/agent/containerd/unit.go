package containerd

import (
	"fmt"
	"strings"
)

// Unit returns a containerd.service for a containerd that came without one, after upstream's own (containerd.service of its releases).
// path is searched for shims and runc before the usual directories. nofile is a LimitNOFILE: what pods inherit.
func Unit(binary string, path []string, nofile string) []byte {
	return fmt.Appendf(nil, `# Written by kubectl-runtime when it brought containerd to this node.
[Unit]
Description=containerd container runtime
Documentation=https://containerd.io
After=network.target local-fs.target dbus.service

[Service]
Environment=PATH=%s
ExecStartPre=-/sbin/modprobe overlay
ExecStart=%s
Type=notify
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
LimitNPROC=infinity
LimitCORE=infinity
LimitNOFILE=%s
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`, searchPath(path), binary, nofile)
}

// Replacement is a drop-in for a containerd.service that has it run another containerd with the same arguments.
func Replacement(binary string, path, args []string) []byte {
	words := []string{quote(binary)}
	for _, arg := range args {
		words = append(words, quote(arg))
	}
	return fmt.Appendf(nil, `# Written by kubectl-runtime: this node's own containerd is too old for its kubelet.
[Service]
Environment=PATH=%s
ExecStart=
ExecStart=%s
`, searchPath(path), strings.Join(words, " "))
}

func searchPath(first []string) string {
	return strings.Join(append(append([]string{}, first...), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ":")
}

// quote writes a word for ExecStart: systemd.service(5), "Command lines".
func quote(word string) string {
	word = strings.NewReplacer(`%`, `%%`, `$`, `$$`, `\`, `\\`, `"`, `\"`).Replace(word)
	if word == "" || strings.ContainsAny(word, " \t'") {
		return `"` + word + `"`
	}
	return word
}
