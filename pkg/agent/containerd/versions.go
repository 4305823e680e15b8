package containerd

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kubectl-runtime/kubectl-runtime/pkg/version"
)

// format is the form of a config file that a release takes.
type format struct {
	version int64
	// binDirs: cni.bin_dirs is a list, as from 2.1 on; 2.4 no longer reads the single cni.bin_dir in a file of version 3 or 4.
	binDirs bool
}

// ConfigVersion is the version of the config files that a release writes itself, and the highest that it reads (version.ConfigVersion in
// its sources).
func ConfigVersion(release version.Version) int64 {
	switch {
	case release.AtLeast(2, 3):
		return 4
	case release.AtLeast(2, 0):
		return 3
	default:
		return 2
	}
}

// formatFor is the form in which the main file has to be, beside the files that it imports. It is the release's own, since that takes
// drop-ins of every version up to it, while 2.3.0 to 2.3.4 exit over a drop-in of a later version than the main file's.
//
// From 2.0 to 2.2 all files are taken for of the last one's version (LoadConfig in cmd/containerd/server/config of 2.0): in a mix, the
// CRI settings of the other version are lost. So there the main file follows the drop-ins.
func formatFor(release version.Version, imported []Imported) (format, error) {
	own := format{version: ConfigVersion(release), binDirs: release.AtLeast(2, 1)}
	if own.version == 2 {
		return own, nil // the imported files are merged into the main one
	}
	var first Imported
	wanted := int64(0)
	for _, file := range imported {
		config, err := readTOML(file.Data)
		if err != nil {
			return own, fmt.Errorf("%s: %w", file.Path, err)
		}
		version, err := versionOf(config)
		if err == nil && version > own.version {
			err = errors.New("too new")
		}
		if err != nil {
			return own, &ImportError{
				File: file.Path, Line: lineOf(file.Data, []string{"version"}), Problem: fmt.Sprintf("version = %v is newer than containerd %s reads", config["version"], release),
				Cure: fmt.Sprintf("write the file in version %d", own.version),
			}
		}
		if own.version > 3 {
			continue // each file is migrated by itself
		}
		switch needs := needsVersion(config, version); {
		case needs == 0 || needs == wanted:
		case wanted == 0:
			first, wanted = file, needs
		default:
			return own, &ImportError{
				File: file.Path, Line: lineOf(file.Data, []string{"version"}),
				Problem: fmt.Sprintf("it is of version %d and %s of version %d: containerd %s reads all files as of one version, and ignores settings of the others", needs, first.Path, wanted, release),
				Cure:    fmt.Sprintf("write both files in version %d", own.version),
			}
		}
	}
	if wanted != 0 {
		own.version = wanted
	}
	return own, nil
}

// needsVersion is the version in which containerd 2.0 to 2.2 has to read a file; 0 where either will do. A file without a version is taken
// for of whichever the others are.
func needsVersion(config table, version int64) int64 {
	if version > 1 {
		return version
	}
	plugins, _ := config["plugins"].(table)
	for id := range plugins {
		switch fullPluginID(id) {
		case criRuntimePlugin, criImagesPlugin:
			return 3
		case criPlugin:
			return 2
		}
	}
	return 0
}

// to converts a config of version 2's form, as parse returns it; it may change config.
func (f format) to(config table) (table, error) {
	if f.version == 2 {
		config["version"] = int64(2)
		return config, nil
	}
	out := table{}
	// What is in CRI's one table comes last, and wins over what lies in the later plugins' tables already.
	for _, ofCRI := range []bool{false, true} {
		err := eachSetting(nil, config, func(path []string, value any) error {
			if under(path, "plugins", criPlugin) != ofCRI {
				return nil
			}
			place := f.place(path)
			if text, ok := value.(string); ok && place[len(place)-1] == "bin_dirs" && path[len(path)-1] == "bin_dir" {
				value = []string{text}
			}
			return put(out, place, value)
		})
		if err != nil {
			return nil, err
		}
	}
	if f.version >= 4 {
		if err := nameTTRPC(out); err != nil {
			return nil, err
		}
	}
	out["version"] = f.version
	return out, nil
}

// serverKeys are the settings of CRI's streaming server, which keep the one table that version 2 has for all of CRI.
var serverKeys = []string{
	"disable_tcp_service", "stream_server_address", "stream_server_port", "stream_idle_timeout", "enable_tls_streaming", "x509_key_pair_streaming",
}

// snapshotterKeys are those of the table containerd that version 3 moved to the images plugin.
var snapshotterKeys = []string{"snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"}

// place is where a setting of version 2's form is: configMigration in plugins/cri, and its images and runtime, of containerd 2.4.
func (f format) place(path []string) []string {
	if f.version >= 4 && len(path) == 2 {
		for _, move := range serverMoves {
			if path[0] == move.table && path[1] == move.key {
				return []string{"plugins", move.plugin, move.as}
			}
		}
	}
	if f.version < 3 || !under(path, "plugins", criPlugin) {
		return path
	}
	images, runtime := []string{"plugins", criImagesPlugin}, []string{"plugins", criRuntimePlugin}
	switch rest := path[2:]; {
	case len(rest) == 0:
		return runtime
	case slices.Contains(serverKeys, rest[0]):
		return path
	case rest[0] == "sandbox_image":
		return append(images, "pinned_images", "sandbox")
	case slices.Contains(imagesKeys, rest[0]):
		return append(images, rest...)
	case rest[0] == "containerd" && len(rest) > 1 && slices.Contains(snapshotterKeys, rest[1]):
		return append(images, rest[1:]...)
	case len(rest) == 2 && rest[0] == "cni" && rest[1] == "bin_dir" && f.binDirs:
		return append(runtime, "cni", "bin_dirs")
	case len(rest) == 4 && rest[1] == "runtimes" && rest[3] == "sandbox_mode":
		return append(append(runtime, rest[:3]...), "sandboxer")
	default:
		return append(runtime, rest...)
	}
}

// serverMoves are the settings of containerd's own servers that version 4 moved into plugins' tables (serviceMigrate in
// cmd/containerd/server/config of containerd 2.4).
var serverMoves = []struct{ table, key, plugin, as string }{
	{"grpc", "address", grpcServer, "address"},
	{"grpc", "uid", grpcServer, "uid"},
	{"grpc", "gid", grpcServer, "gid"},
	{"grpc", "max_recv_message_size", grpcServer, "max_recv_message_size"},
	{"grpc", "max_send_message_size", grpcServer, "max_send_message_size"},
	{"grpc", "tcp_address", "io.containerd.server.v1.grpc-tcp", "address"},
	{"grpc", "tcp_tls_ca", "io.containerd.server.v1.grpc-tcp", "tls_ca"},
	{"grpc", "tcp_tls_cert", "io.containerd.server.v1.grpc-tcp", "tls_cert"},
	{"grpc", "tcp_tls_key", "io.containerd.server.v1.grpc-tcp", "tls_key"},
	{"grpc", "tcp_tls_common_name", "io.containerd.server.v1.grpc-tcp", "tls_common_name"},
	{"ttrpc", "address", ttrpcServer, "address"},
	{"ttrpc", "uid", ttrpcServer, "uid"},
	{"ttrpc", "gid", ttrpcServer, "gid"},
	{"debug", "address", debugServer, "address"},
	{"debug", "uid", debugServer, "uid"},
	{"debug", "gid", debugServer, "gid"},
	{"metrics", "address", "io.containerd.server.v1.metrics", "address"},
	{"metrics", "grpc_histogram", "io.containerd.metrics.v1.grpc-prometheus", "grpc_histogram"},
}

const (
	grpcServer  = "io.containerd.server.v1.grpc"
	ttrpcServer = "io.containerd.server.v1.ttrpc"
	debugServer = "io.containerd.server.v1.debug"
)

// fromV4 moves the servers' settings back.
func fromV4(config table) error {
	plugins, err := subtable(config, "plugins")
	if err != nil {
		return err
	}
	for _, move := range serverMoves {
		server, ok := plugins[move.plugin].(table)
		value, there := server[move.as]
		if !ok || !there {
			continue
		}
		if err := put(config, []string{move.table, move.key}, value); err != nil {
			return err
		}
		if delete(server, move.as); len(server) == 0 {
			delete(plugins, move.plugin)
		}
	}
	grpc, _ := config["grpc"].(table)
	if ttrpc, _ := config["ttrpc"].(table); grpc["address"] != nil && ttrpc["address"] == nil {
		// Up to version 3 it would follow the other address.
		return put(config, []string{"ttrpc", "address"}, DefaultAddress+".ttrpc")
	}
	return nil
}

// nameTTRPC gives the second server the address that it has up to version 3 without being given one.
func nameTTRPC(config table) error {
	plugins, _ := config["plugins"].(table)
	grpc, _ := plugins[grpcServer].(table)
	ttrpc, _ := plugins[ttrpcServer].(table)
	address, _ := grpc["address"].(string)
	if address == "" || ttrpc["address"] != nil {
		return nil
	}
	return put(config, []string{"plugins", ttrpcServer, "address"}, address+".ttrpc")
}

func under(path []string, table ...string) bool {
	return len(path) >= len(table) && slices.Equal(path[:len(table)], table)
}

// eachSetting calls visit with each value of a config that is no table.
func eachSetting(within []string, config table, visit func(path []string, value any) error) error {
	for _, key := range sortedKeys(config) {
		path := append(slices.Clone(within), key)
		var err error
		if child, ok := config[key].(table); ok {
			err = eachSetting(path, child, visit)
		} else {
			err = visit(path, config[key])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func put(config table, path []string, value any) error {
	for _, key := range path[:len(path)-1] {
		child, err := subtable(config, key)
		if err != nil {
			return err
		}
		config = child
	}
	config[path[len(path)-1]] = value
	return nil
}

// at is the value at a path; nil if there is none.
func at(config table, path ...string) any {
	for _, key := range path[:len(path)-1] {
		config, _ = config[key].(table)
	}
	return config[path[len(path)-1]]
}
