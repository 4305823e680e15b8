package translate

import "strings"

// Markdown renders the table of keys for docs/configuration.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString(`# What becomes of Docker's configuration

<!-- Made from pkg/agent/translate by its tests; go test ./pkg/agent/translate -update rewrites it. -->

Before anything is changed, the agent reads daemon.json, the flags of the running dockerd and its environment. Each setting
gets one verdict. Warnings are reported with the node; a key that is not in this table is a warning, too. A daemon.json
that dockerd itself would refuse (not JSON, a wrong type, the same setting as a flag) refuses the switch: Docker would not start
again, and there would be no way back. From 23.0 on dockerd judges by itself: the agent runs the program of the running one with
its arguments, its environment and --validate, which starts nothing. Before 23.0 the agent judges, by the rules of 20.10. A key
that is in the file twice is a warning: dockerd takes the later value, of two objects what either holds, and so does the agent.

Beside daemon.json: /etc/docker/certs.d is copied to containerd's certs.d; HTTP_PROXY, HTTPS_PROXY and NO_PROXY of
docker.service go to a drop-in of containerd.service; credentials with which Docker's side of the kubelet pulls a private
sandbox image go to containerd's config, which is then root's alone. Where containerd's own files say something already, they
win; registries that its config has inline move to certs.d, the only place that all of them can be in. containerd's config is
written in the version that this containerd writes itself (2 up to containerd 1.7, 3 up to 2.2, 4 from 2.3 on), with all settings and
comments of the file that was there; a comment whose setting is gone moves to the table that held it, or to the head of the file. The file
as it was is in the run's backups.

What counts is the merged configuration, as ` + "`containerd config dump`" + ` of the very program prints it for the new file and those that it
imports: certificates and mirrors go to the ` + "`config_path`" + ` that an imported file sets, and handlers that an imported file defines get the
cgroup driver. Before containerd 2.0, where an imported file replaces whole tables, imported files become part of the one file. From 2.0 on
they stay, and an imported file that overrides what the node's pods need is refused with its name and line. So is a drop-in of a
version that containerd does not read, and on 2.0 to 2.2 drop-ins of different versions, of which it would ignore some.

Docker gives each container, from 20.10 on, ports below 1024 and ICMP echos without privileges. So does containerd then.

| key | verdict | how it is translated |
|---|---|---|
`)
	for _, k := range keys {
		verdict := string(k.Verdict)
		if k.depends {
			verdict += ", depending on the value"
		}
		b.WriteString("| `" + k.Name + "` | " + verdict + " | " + k.Becomes + " |\n")
	}
	return b.String()
}
