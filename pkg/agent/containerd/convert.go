package containerd

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// The plugin IDs whose tables hold CRI's settings.
const (
	criPlugin        = "io.containerd.grpc.v1.cri"    // all of CRI up to version 2, the streaming server's alone after
	criRuntimePlugin = "io.containerd.cri.v1.runtime" // version 3 and 4
	criImagesPlugin  = "io.containerd.cri.v1.images"  // version 3 and 4
)

// maxVersion is the newest config format this package knows, that of containerd 2.3 and 2.4.
const maxVersion = 4

// table is a TOML table.
type table = map[string]any

// parse reads a config of any version and converts it to version 2's form, in which this package works.
func parse(data []byte) (table, error) {
	config, err := readTOML(data)
	if err != nil {
		return nil, err
	}
	version, err := versionOf(config)
	if err != nil {
		return nil, err
	}
	switch version {
	case 1:
		// Without a version it may be a drop-in in the form of version 3 that does not say so; 2.x takes that.
		if err = fromV1(config); err == nil {
			err = fromV3(config)
		}
	case 3:
		err = fromV3(config)
	case 4:
		if err = fromV4(config); err == nil {
			err = fromV3(config)
		}
	}
	if err != nil {
		return nil, err
	}
	config["version"] = int64(2)
	return config, nil
}

// unmarshal is toml.Unmarshal whose errors tell the place.
func unmarshal(data []byte, to *table) error {
	err := toml.Unmarshal(data, to)
	var at *toml.DecodeError
	if errors.As(err, &at) {
		line, column := at.Position()
		return fmt.Errorf("line %d, column %d: %w", line, column, err)
	}
	return err
}

// maxFile is far above any config of containerd's, in bytes.
const maxFile = 1 << 20

func readTOML(data []byte) (table, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("parse containerd config: it has %d bytes; no config has more than %d", len(data), maxFile)
	}
	config := table{}
	if err := unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("parse containerd config: %w", err)
	}
	return config, nil
}

// versionOf reads the version key; a file without one is version 1 in every containerd.
func versionOf(config table) (int64, error) {
	raw, ok := config["version"]
	if !ok {
		return 1, nil
	}
	version, ok := raw.(int64)
	if !ok || version < 0 || version > maxVersion {
		return 0, &CannotKeepError{Key: "version", Reason: fmt.Sprintf("%v is not a config format of containerd up to 2.4", raw)}
	}
	return max(version, 1), nil
}

// v1Plugins are the short IDs that are not built from a rule, as containerd 2.4 maps them
// (cmd/containerd/server/config/config.go, v1MigratePluginName).
var v1Plugins = map[string]string{
	"cri":       criPlugin,
	"cgroups":   "io.containerd.monitor.v1.cgroups",
	"linux":     "io.containerd.runtime.v1.linux",
	"scheduler": "io.containerd.gc.v1.scheduler",
	"bolt":      "io.containerd.metadata.v1.bolt",
	"task":      "io.containerd.runtime.v2.task",
	"opt":       "io.containerd.internal.v1.opt",
	"restart":   "io.containerd.internal.v1.restart",
	"tracing":   "io.containerd.internal.v1.tracing",
	"otlp":      "io.containerd.tracing.processor.v1.otlp",
	"aufs":      "io.containerd.snapshotter.v1.aufs",
	"btrfs":     "io.containerd.snapshotter.v1.btrfs",
	"devmapper": "io.containerd.snapshotter.v1.devmapper",
	"native":    "io.containerd.snapshotter.v1.native",
	"overlayfs": "io.containerd.snapshotter.v1.overlayfs",
	"zfs":       "io.containerd.snapshotter.v1.zfs",
}

func fullPluginID(id string) string {
	switch full, ok := v1Plugins[id]; {
	case strings.Contains(id, "."):
		return id
	case ok:
		return full
	case strings.HasSuffix(id, "-service"):
		return "io.containerd.service.v1." + id
	default:
		return "io.containerd.grpc.v1." + id
	}
}

// fromV1 renames plugins. Tables under full IDs are what people paste into Docker's own file, which has no version: containerd
// 1.x ignored them, so the short ID's settings win where both are there.
func fromV1(config table) error {
	plugins, err := subtable(config, "plugins")
	if err != nil {
		return err
	}
	for _, id := range sortedKeys(plugins) {
		full := fullPluginID(id)
		if full == id {
			continue
		}
		settings := plugins[id]
		delete(plugins, id)
		if there, ok := plugins[full].(table); ok {
			over, ok := settings.(table)
			if !ok {
				return notTable("plugins." + id)
			}
			merge(there, over)
			continue
		}
		plugins[full] = settings
	}
	return mapPluginLists(config)
}

// mapPluginLists gives disabled_plugins and required_plugins full IDs: a version 2 daemon exits over short ones.
func mapPluginLists(config table) error {
	for _, key := range []string{"disabled_plugins", "required_plugins"} {
		ids, err := stringList(config, key)
		if err != nil {
			return err
		}
		if ids == nil {
			continue
		}
		for i, id := range ids {
			ids[i] = fullPluginID(id)
		}
		config[key] = ids
	}
	return nil
}

// imagesKeys are the settings that version 3 moved from CRI's one table to the images plugin under the same name; the other
// way round than plugins/cri/images/plugin.go of containerd 2.4.
var imagesKeys = []string{
	"registry", "image_decryption", "max_concurrent_downloads", "image_pull_progress_timeout", "image_pull_with_sync_fs",
	"stats_collect_period",
}

// fromV3 moves CRI's settings back into one table. What has no place there stays in the tables of the new plugins: a version 2
// file may hold these, too, and containerd 2.x merges them in, while older ones never read them.
func fromV3(config table) error {
	plugins, err := subtable(config, "plugins")
	if err != nil {
		return err
	}
	cri, err := subtable(plugins, criPlugin)
	if err != nil {
		return err
	}
	if err := moveImages(plugins, cri); err != nil {
		return err
	}
	runtime, err := subtable(plugins, criRuntimePlugin)
	if err != nil {
		return err
	}
	delete(plugins, criRuntimePlugin)
	// The runtime plugin has a stats_collect_period, too: a duration, where the images plugin's is a number.
	for _, key := range imagesKeys {
		if value, ok := runtime[key]; ok {
			rest, err := subtable(plugins, criRuntimePlugin)
			if err != nil {
				return err
			}
			rest[key] = value
			delete(runtime, key)
		}
	}
	if cni, ok := runtime["cni"].(table); ok {
		dirs, err := stringList(cni, "bin_dirs")
		if err != nil {
			return err
		}
		if len(dirs) > 0 {
			// Render refuses a longer list unless it knows which directory has the plugins.
			cni["bin_dirs"] = dirs
			if len(dirs) == 1 {
				cni["bin_dir"] = dirs[0]
				delete(cni, "bin_dirs")
			}
		}
	}
	merge(cri, runtime)
	runtimes, _ := at(cri, "containerd", "runtimes").(table)
	for name := range runtimes {
		if handler, ok := runtimes[name].(table); ok && handler["sandboxer"] != nil {
			handler["sandbox_mode"] = handler["sandboxer"]
			delete(handler, "sandboxer")
		}
	}
	return nil
}

func moveImages(plugins, cri table) error {
	images, err := subtable(plugins, criImagesPlugin)
	if err != nil {
		return err
	}
	for _, key := range imagesKeys {
		if value, ok := images[key]; ok {
			cri[key] = value
			delete(images, key)
		}
	}
	pinned, err := subtable(images, "pinned_images")
	if err != nil {
		return err
	}
	if sandbox, ok := pinned["sandbox"]; ok {
		cri["sandbox_image"] = sandbox
		delete(pinned, "sandbox")
	}
	containerd, err := subtable(cri, "containerd")
	if err != nil {
		return err
	}
	for _, key := range snapshotterKeys {
		if value, ok := images[key]; ok {
			containerd[key] = value
			delete(images, key)
		}
	}
	if len(pinned) == 0 {
		delete(images, "pinned_images")
	}
	if len(images) == 0 {
		delete(plugins, criImagesPlugin)
	}
	return nil
}

// subtable returns parent's table key, making it if it is not there.
func subtable(parent table, key string) (table, error) {
	value, ok := parent[key]
	if !ok {
		value = table{}
		parent[key] = value
	}
	child, ok := value.(table)
	if !ok {
		return nil, notTable(key)
	}
	return child, nil
}

func notTable(key string) error {
	return &CannotKeepError{Key: key, Reason: "it is not a table"}
}

// stringList returns parent's list key, nil if there is none.
func stringList(parent table, key string) ([]string, error) {
	switch value := parent[key].(type) {
	case nil:
		return nil, nil
	case []string:
		return slices.Clone(value), nil
	case []any:
		list := make([]string, 0, len(value))
		for _, item := range value {
			text, ok := item.(string)
			if !ok {
				return nil, &CannotKeepError{Key: key, Reason: "it is not a list of strings"}
			}
			list = append(list, text)
		}
		return list, nil
	default:
		return nil, &CannotKeepError{Key: key, Reason: "it is not a list of strings"}
	}
}

// merge puts over's settings into base; tables are merged, all else is replaced.
func merge(base, over table) {
	for key, value := range over {
		if child, ok := value.(table); ok {
			if there, ok := base[key].(table); ok {
				merge(there, child)
				continue
			}
		}
		base[key] = value
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
