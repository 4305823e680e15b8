package containerd

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// HostFiles are the files of certs.d directories: host, file name, content.
type HostFiles map[string]map[string][]byte

// File is one to be written.
type File struct {
	Path string
	Data []byte
	// Mode are its permission bits.
	Mode uint32
}

// Registries returns the files below dir (a config_path) that make containerd reach registries as Docker did: mirrors of Docker
// Hub in their order, insecure registries, and what lay in Docker's certs.d. A host that there is a hosts.toml for already stays as
// it is; warnings name these, and certificates that cannot be used. It is pure.
func Registries(dir string, mirrors, insecure []string, docker, have HostFiles) (files []File, warnings []string) {
	r := registries{dir: dir, insecure: insecure, docker: docker}
	hosts := slices.Concat(insecure, sortedKeys(docker))
	if len(mirrors) > 0 {
		hosts = append(hosts, "docker.io")
	}
	slices.Sort(hosts)
	for _, host := range slices.Compact(hosts) {
		if kept := there(have, host); kept != "" {
			if same(have[kept], docker[host]) && !slices.Contains(insecure, host) && (host != "docker.io" || len(mirrors) == 0) {
				continue
			}
			warnings = append(warnings, fmt.Sprintf("%s is kept: Docker's settings for registry %s are not added to it", filepath.Join(dir, kept), host))
			continue
		}
		var own []string
		if host == "docker.io" {
			own = mirrors
		}
		files = append(files, File{filepath.Join(dir, host, "hosts.toml"), r.hostsTOML(host, own), 0o644})
	}
	// Also certificates of hosts whose hosts.toml stays: a mirror's are used from another host's file.
	for _, host := range sortedKeys(docker) {
		for _, name := range sortedKeys(docker[host]) {
			mode := uint32(0o644)
			switch {
			case strings.HasSuffix(name, ".key"):
				mode = 0o600
			case !strings.HasSuffix(name, ".crt") && !strings.HasSuffix(name, ".cert"):
				continue
			}
			if block, _ := pem.Decode(docker[host][name]); block == nil {
				warnings = append(warnings, fmt.Sprintf("registry %s: %s holds no certificate or key, and is left out", host, name))
				continue
			}
			if old, ok := have[host][name]; ok {
				if !bytes.Equal(old, docker[host][name]) {
					warnings = append(warnings, fmt.Sprintf("registry %s: containerd has another %s than Docker, and keeps it", host, name))
				}
				continue
			}
			files = append(files, File{filepath.Join(dir, host, name), docker[host][name], mode})
		}
	}
	return files, warnings
}

// there returns the directory, if any, that containerd has for the host; it looks for two spellings.
func there(have HostFiles, host string) string {
	name, port, ok := strings.Cut(host, ":")
	if ok && len(have[name+"_"+port+"_"]) > 0 {
		return name + "_" + port + "_"
	}
	if len(have[host]) > 0 {
		return host
	}
	return ""
}

func same(have, docker map[string][]byte) bool {
	for name, data := range docker {
		if !bytes.Equal(have[name], data) {
			return false
		}
	}
	return true
}

type registries struct {
	dir      string
	insecure []string
	docker   HostFiles
}

// tomlString is a basic string of TOML 1.0, whose escapes are fewer than Go's.
func tomlString(s string) string {
	var out strings.Builder
	out.WriteByte('"')
	for _, r := range strings.ToValidUTF8(s, "\ufffd") {
		switch {
		case r == '"' || r == '\\':
			out.WriteByte('\\')
			out.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&out, "\\u%04X", r)
		default:
			out.WriteRune(r)
		}
	}
	out.WriteByte('"')
	return out.String()
}

const hostsHeader = "# Written by kubectl-runtime from Docker's configuration.\n"

// hostsTOML has a host's own settings in the file itself: containerd looks for certificates beside it only where it is missing.
func (r registries) hostsTOML(host string, mirrors []string) []byte {
	var out bytes.Buffer
	out.WriteString(hostsHeader)
	bad := slices.Contains(r.insecure, host)
	switch {
	case host == "docker.io":
		out.WriteString("server = \"https://registry-1.docker.io\"\n")
	case bad:
		// Tried last. Docker, too, tries HTTPS first and then plain HTTP.
		fmt.Fprintf(&out, "server = %s\n", tomlString("http://"+host))
	default:
		fmt.Fprintf(&out, "server = %s\n", tomlString("https://"+host))
	}
	if !bad {
		r.certificates(&out, "", host)
	}
	if bad && host != "docker.io" {
		r.endpoint(&out, "https://"+host, host, "[\"pull\", \"resolve\", \"push\"]")
	}
	for _, mirror := range mirrors {
		at := ""
		if u, err := url.Parse(mirror); err == nil {
			at = u.Host
		}
		r.endpoint(&out, strings.TrimSuffix(mirror, "/"), at, "[\"pull\", \"resolve\"]")
	}
	return out.Bytes()
}

func (r registries) endpoint(out *bytes.Buffer, address, host, capabilities string) {
	fmt.Fprintf(out, "\n[host.%s]\n  capabilities = %s\n", tomlString(address), capabilities)
	if slices.Contains(r.insecure, host) && strings.HasPrefix(address, "https://") {
		out.WriteString("  skip_verify = true\n")
	}
	r.certificates(out, "  ", host)
}

// certificates names a host's CAs and client certificates.
func (r registries) certificates(out *bytes.Buffer, indent, host string) {
	var cas, clients []string
	usable := func(name string) bool {
		block, _ := pem.Decode(r.docker[host][name])
		return block != nil
	}
	path := func(name string) string { return tomlString(filepath.Join(r.dir, host, name)) }
	for _, name := range sortedKeys(r.docker[host]) {
		switch filepath.Ext(name) {
		case ".crt":
			if usable(name) {
				cas = append(cas, path(name))
			}
		case ".cert":
			if key := strings.TrimSuffix(name, ".cert") + ".key"; usable(name) && usable(key) {
				clients = append(clients, "["+path(name)+", "+path(key)+"]")
			}
		}
	}
	if len(cas) > 0 {
		fmt.Fprintf(out, "%sca = [%s]\n", indent, strings.Join(cas, ", "))
	}
	if len(clients) > 0 {
		fmt.Fprintf(out, "%sclient = [%s]\n", indent, strings.Join(clients, ", "))
	}
}

// DropIn returns the drop-in for containerd.service with environment variables, nil if there are none.
func DropIn(environment []string) []byte {
	if len(environment) == 0 {
		return nil
	}
	var out bytes.Buffer
	out.WriteString("# Written by kubectl-runtime from Docker's configuration.\n[Service]\n")
	escape := strings.NewReplacer("\\", "\\\\", "\"", "\\\"", "%", "%%", "\n", "\\n")
	for _, variable := range environment {
		fmt.Fprintf(&out, "Environment=\"%s\"\n", escape.Replace(variable))
	}
	return out.Bytes()
}

// Wrapper returns the script that runs a runtime with arguments, as Docker writes it itself for want of a shim's option.
func Wrapper(path string, args []string) []byte {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	line := "exec " + quote(path)
	for _, arg := range args {
		line += " " + quote(arg)
	}
	return []byte("#!/bin/sh\n# Written by kubectl-runtime from Docker's runtimeArgs.\n" + line + " \"$@\"\n")
}
