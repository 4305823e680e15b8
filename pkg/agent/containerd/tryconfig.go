package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// trySocket is the throw-away daemon's socket in its directory.
const trySocket = "c.sock"

// writeTryConfig writes config.toml, and a copy of each file it imports, into dir, without anything that the live daemon uses. Each stays
// of its version: how this containerd takes the files together is what is tried.
func writeTryConfig(dir string, config []byte, imported []Imported) error {
	main := table{}
	if err := unmarshal(config, &main); err != nil {
		return err
	}
	delete(main, "imports")
	var imports []string
	for i, file := range imported {
		content := table{}
		if err := unmarshal(file.Data, &content); err != nil {
			return fmt.Errorf("imported file %s: %w", file.Path, err)
		}
		delete(content, "imports") // they are among imported
		if err := isolate(content, ""); err != nil {
			return fmt.Errorf("imported file %s: %w", file.Path, err)
		}
		path := filepath.Join(dir, fmt.Sprintf("import-%03d.toml", i))
		if err := writeTOML(path, content); err != nil {
			return err
		}
		imports = append(imports, path)
	}
	if len(imports) > 0 {
		main["imports"] = imports
	}
	if err := isolate(main, dir); err != nil {
		return err
	}
	return writeTOML(filepath.Join(dir, "config.toml"), main)
}

// isolate takes out of a config whatever the live daemon listens on, writes to, or accounts to. With dir it puts the throw-away
// daemon's own in place; without, it is an imported file.
func isolate(config table, dir string) error {
	for _, key := range []string{"root", "state", "temp", "grpc", "ttrpc", "metrics", "cgroup", "oom_score", "plugin_dir"} {
		delete(config, key)
	}
	if debug, ok := config["debug"].(table); ok {
		delete(debug, "address")
	}
	plugins, _ := config["plugins"].(table)
	for id, value := range plugins {
		settings, ok := value.(table)
		if !ok {
			continue
		}
		switch {
		case strings.HasPrefix(id, "io.containerd.server.v1."), id == "io.containerd.nri.v1.nri":
			delete(plugins, id)
		case strings.HasPrefix(id, "io.containerd.snapshotter.v1."):
			// Without a directory of its own it uses the daemon's root. devmapper keeps its pool: loading only reads its status.
			delete(settings, "root_path")
		case strings.HasSuffix(id, ".opt"), id == "opt":
			delete(settings, "path")
		}
	}
	if dir == "" {
		return nil
	}
	version, err := versionOf(config)
	if err != nil {
		return err
	}
	of := format{version: version}
	for _, server := range []struct{ table, socket string }{{"grpc", trySocket}, {"ttrpc", trySocket + ".ttrpc"}, {"debug", "debug.sock"}} {
		if err := put(config, of.place([]string{server.table, "address"}), filepath.Join(dir, server.socket)); err != nil {
			return err
		}
	}
	own, err := subtable(config, "plugins")
	if err != nil {
		return err
	}
	own["io.containerd.nri.v1.nri"] = table{"disable": true}
	own["io.containerd.internal.v1.opt"] = table{"path": filepath.Join(dir, "opt")}
	cri, err := subtable(own, criPlugin)
	if err != nil {
		return err
	}
	cri["stream_server_address"], cri["stream_server_port"] = "127.0.0.1", "0"
	return nil
}

func writeTOML(path string, config table) error {
	data, err := toml.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
