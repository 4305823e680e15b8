package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// trySocket is the throw-away daemon's socket in its directory.
const trySocket = "c.sock"

// writeTryConfig writes config.toml, and a copy of each file it imports, into dir, without anything that the live daemon uses.
func writeTryConfig(dir string, config []byte) error {
	main, err := parse(config)
	if err != nil {
		return err
	}
	files, err := collectImports(main, filepath.Dir(DefaultConfigPath), nil)
	if err != nil {
		return err
	}
	delete(main, "imports")
	var imports []string
	for i, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read imported file: %w", err)
		}
		// Not converted: how this containerd takes the file as it is, is what is tried.
		imported := table{}
		if err := toml.Unmarshal(data, &imported); err != nil {
			return fmt.Errorf("parse imported file %s: %w", file, err)
		}
		delete(imported, "imports")
		if err := isolate(imported, ""); err != nil {
			return fmt.Errorf("imported file %s: %w", file, err)
		}
		path := filepath.Join(dir, fmt.Sprintf("import-%03d.toml", i))
		if err := writeTOML(path, imported); err != nil {
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

// collectImports lists the files that config imports, each once, in the order of loading: a file's own after it.
func collectImports(config table, base string, seen []string) ([]string, error) {
	patterns, err := stringList(config, "imports")
	if err != nil {
		return nil, err
	}
	for _, pattern := range patterns {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(base, pattern)
		}
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("imports %s: %w", pattern, err)
		}
		if matches == nil && !strings.ContainsAny(pattern, "*?[") {
			matches = []string{pattern} // so that its absence is an error here as it is there
		}
		for _, file := range matches {
			if slices.Contains(seen, file) || file == DefaultConfigPath {
				continue
			}
			seen = append(seen, file)
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("read imported file: %w", err)
			}
			imported := table{}
			if err := toml.Unmarshal(data, &imported); err != nil {
				return nil, fmt.Errorf("parse imported file %s: %w", file, err)
			}
			if seen, err = collectImports(imported, filepath.Dir(file), seen); err != nil {
				return nil, err
			}
		}
	}
	return seen, nil
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
	config["grpc"] = table{"address": filepath.Join(dir, trySocket)}
	config["ttrpc"] = table{"address": filepath.Join(dir, trySocket+".ttrpc")}
	debug, err := subtable(config, "debug")
	if err != nil {
		return err
	}
	debug["address"] = filepath.Join(dir, "debug.sock")
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
