package containerd

import (
	"bytes"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// allHosts is the inline table's name for every registry without one of its own.
const allHosts = "*"

// InlineHosts returns the hosts.toml files that say what the older inline registries of a config say, its mirrors and TLS settings:
// CRI does not load with both, and containerd 2.x ignores the latter. Of s it takes Release and Imported. Credentials are not among them: they
// stay in the config, where they may stand beside config_path.
func InlineHosts(existing []byte, s Settings) (HostFiles, error) {
	config, err := s.parse(existing)
	if err != nil {
		return nil, err
	}
	at := config
	for _, key := range []string{"plugins", criPlugin, "registry"} {
		if at, err = subtable(at, key); err != nil {
			return nil, err
		}
	}
	return inlineHosts(at)
}

func inlineHosts(registry table) (HostFiles, error) {
	if path, _ := registry["config_path"].(string); path != "" {
		return nil, nil
	}
	mirrors, err := subtable(registry, "mirrors")
	if err != nil {
		return nil, err
	}
	configs, err := subtable(registry, "configs")
	if err != nil {
		return nil, err
	}
	files := HostFiles{}
	for _, host := range sortedKeys(mirrors) {
		mirror, err := subtable(mirrors, host)
		if err != nil {
			return nil, err
		}
		endpoints, err := stringList(mirror, "endpoint")
		if err != nil {
			return nil, err
		}
		if err := addHost(files, configs, host, endpoints); err != nil {
			return nil, err
		}
	}
	for _, host := range sortedKeys(configs) {
		config, err := subtable(configs, host)
		if err != nil {
			return nil, err
		}
		if name, _ := dirOf(host); config["tls"] != nil && files[name] == nil {
			if err := addHost(files, configs, host, nil); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// dirOf is a registry's directory below config_path, and where it is when nothing else is said.
func dirOf(host string) (name, server string) {
	switch host {
	case allHosts:
		return "_default", ""
	case "docker.io":
		return host, "https://registry-1.docker.io"
	default:
		return host, "https://" + host
	}
}

func addHost(files HostFiles, configs table, host string, endpoints []string) error {
	if host == "" || strings.ContainsAny(host, "/\\\n\x00") || strings.HasPrefix(host, ".") {
		return &CannotKeepError{Key: "registry.mirrors." + host, Reason: "no directory can have that name"}
	}
	name, server := dirOf(host)
	var out bytes.Buffer
	out.WriteString("# Written by kubectl-runtime from containerd's own config, which had this inline.\n")
	if server != "" {
		fmt.Fprintf(&out, "server = %s\n", strconv.Quote(server))
		if err := writeTLS(&out, "", configs, strings.TrimPrefix(server, "https://")); err != nil {
			return err
		}
	}
	for _, endpoint := range endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" {
			return &CannotKeepError{Key: "registry.mirrors." + host, Reason: fmt.Sprintf("endpoint %q is no URL", endpoint)}
		}
		fmt.Fprintf(&out, "\n[host.%s]\n  capabilities = [\"pull\", \"resolve\"]\n", strconv.Quote(strings.TrimSuffix(endpoint, "/")))
		if path.Clean("/"+u.Path) != "/" {
			out.WriteString("  override_path = true\n") // an inline endpoint's path is the whole
		}
		if err := writeTLS(&out, "  ", configs, u.Host); err != nil {
			return err
		}
	}
	files[name] = map[string][]byte{"hosts.toml": out.Bytes()}
	return nil
}

// writeTLS writes what registry.configs has for a host.
func writeTLS(out *bytes.Buffer, indent string, configs table, host string) error {
	config, ok := configs[host].(table)
	if !ok || config["tls"] == nil {
		return nil
	}
	tls, err := subtable(config, "tls")
	if err != nil {
		return err
	}
	text := func(key string) string { value, _ := tls[key].(string); return value }
	if skip, _ := tls["insecure_skip_verify"].(bool); skip {
		fmt.Fprintf(out, "%sskip_verify = true\n", indent)
	}
	if ca := text("ca_file"); ca != "" {
		fmt.Fprintf(out, "%sca = [%s]\n", indent, strconv.Quote(ca))
	}
	if cert := text("cert_file"); cert != "" {
		fmt.Fprintf(out, "%sclient = [[%s, %s]]\n", indent, strconv.Quote(cert), strconv.Quote(text("key_file")))
	}
	return nil
}
