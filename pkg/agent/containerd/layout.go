package containerd

// Layout is where a containerd with a given config keeps and finds things.
type Layout struct {
	Root string
	// Address is the path of the socket.
	Address      string
	Snapshotter  string
	SandboxImage string // empty: the release's own default
	CNIBinDir    string
	CNIConfDir   string
	// RegistryDir is where hosts.toml files are, or will be, looked for; empty if the config has what Render refuses.
	RegistryDir string
	// NamesSnapshotter tells that a file says one.
	NamesSnapshotter bool
}

// ReadLayout reads the Layout of a config of any version and of the files that it imports, with containerd's defaults for what they do
// not say.
func ReadLayout(data []byte, imported ...Imported) (Layout, error) {
	config, err := parseAll(data, imported)
	if err != nil {
		return Layout{}, err
	}
	text := func(def string, path ...string) string {
		if value, _ := at(config, path...).(string); value != "" {
			return value
		}
		return def
	}
	registry, err := registryDir(config)
	if err != nil {
		return Layout{}, err
	}
	return Layout{
		RegistryDir:      registry,
		NamesSnapshotter: text("", "plugins", criPlugin, "containerd", "snapshotter") != "",

		Root:         text(DefaultRoot, "root"),
		Address:      text(DefaultAddress, "grpc", "address"),
		Snapshotter:  text("overlayfs", "plugins", criPlugin, "containerd", "snapshotter"),
		SandboxImage: text("", "plugins", criPlugin, "sandbox_image"),
		CNIBinDir:    text("/opt/cni/bin", "plugins", criPlugin, "cni", "bin_dir"),
		CNIConfDir:   text("/etc/cni/net.d", "plugins", criPlugin, "cni", "conf_dir"),
	}, nil
}

// registryDir is the directory that Render writes, or leaves, as config_path.
func registryDir(config table) (string, error) {
	plugins, err := subtable(config, "plugins")
	if err != nil {
		return "", err
	}
	cri, err := subtable(plugins, criPlugin)
	if err != nil {
		return "", err
	}
	if err := setRegistry(cri, Settings{}); err != nil {
		return "", nil //nolint:nilerr // Render refuses it
	}
	registry, err := subtable(cri, "registry")
	if err != nil {
		return "", err
	}
	path, _ := registry["config_path"].(string)
	return path, nil
}
