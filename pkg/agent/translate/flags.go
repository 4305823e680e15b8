package translate

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// FlagError is a flag of the running dockerd that this package does not understand.
type FlagError struct{ Flag, Reason string }

func (e *FlagError) Error() string { return "flag of dockerd " + e.Flag + ": " + e.Reason }

// plain are flags that stand for no key: those of daemon.json itself, and the three that the key proxies holds.
var plain = map[string]kind{
	"config-file": text, "validate": boolean, "version": boolean, "restart": boolean, "http-proxy": text, "https-proxy": text, "no-proxy": text,
}

// ConfigFile returns the path of daemon.json that a dockerd with these arguments reads.
func ConfigFile(args []string) string {
	path := "/etc/docker/daemon.json"
	_ = eachFlag(args, func(name, value string) error {
		if name == "config-file" {
			path = value
		}
		return nil
	})
	return path
}

// eachFlag cuts a command line as pflag does. Which flags take no value is in the table of keys.
func eachFlag(args []string, visit func(name, value string) error) error {
	for i := 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return nil
		}
		name, value, given := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !strings.HasPrefix(arg, "--") {
			if len(arg) < 2 || arg[0] != '-' {
				continue // dockerd takes no arguments beside flags
			}
			long, ok := longName(arg[1:2])
			if !ok {
				continue
			}
			name, value, given = long, strings.TrimPrefix(arg[2:], "="), len(arg) > 2
		}
		switch k, known := kindOf(name); {
		case given:
		case known && k == boolean:
			value = "true"
		case i+1 < len(args) && (known || !strings.HasPrefix(args[i+1], "-")):
			i++
			value = args[i]
		}
		if err := visit(name, value); err != nil {
			return err
		}
	}
	return nil
}

func longName(short string) (string, bool) {
	for _, k := range keys {
		if k.short == short {
			return flagOf(k), true
		}
	}
	return "", false
}

func flagOf(k Key) string {
	if k.flag != "" {
		return k.flag
	}
	return k.Name
}

func kindOf(flag string) (kind, bool) {
	if k, ok := plain[flag]; ok {
		return k, true
	}
	for _, k := range keys {
		if flagOf(k) == flag {
			return k.kind, true
		}
	}
	return text, false
}

// readFlags turns a command line into the settings that daemon.json would have.
func readFlags(args []string) ([]setting, error) {
	values := map[string][]string{}
	var order []string
	err := eachFlag(args, func(name, value string) error {
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = append(values[name], value)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []setting
	proxies := map[string]string{}
	for _, name := range order {
		last := values[name][len(values[name])-1]
		if strings.HasSuffix(name, "-proxy") {
			if _, ok := plain[name]; ok {
				proxies[name] = last
				continue
			}
		}
		i := slices.IndexFunc(keys, func(k Key) bool { return flagOf(k) == name })
		if i < 0 {
			continue // dockerd runs, so it knows the flag: it is one without a key
		}
		raw, err := flagJSON(keys[i], values[name])
		if err != nil {
			return nil, &FlagError{"--" + name, err.Error()}
		}
		out = append(out, flagSetting(keys[i], raw))
	}
	if len(proxies) > 0 {
		key, _ := keyNamed("proxies")
		raw, err := json.Marshal(proxies)
		if err != nil {
			return nil, err
		}
		out = append(out, flagSetting(key, raw))
	}
	return out, nil
}

func flagSetting(key Key, raw []byte) setting {
	return setting{key, "dockerd's flag --" + flagOf(key), func(format string, args ...any) error {
		return &FlagError{"--" + flagOf(key), fmt.Sprintf(format, args...)}
	}, raw, false}
}

func flagJSON(k Key, values []string) ([]byte, error) {
	last := values[len(values)-1]
	switch {
	case k.Name == "runtimes":
		runtimes := map[string]map[string]string{}
		for _, v := range values {
			name, path, _ := strings.Cut(v, "=")
			runtimes[name] = map[string]string{"path": path}
		}
		return json.Marshal(runtimes)
	case k.Name == "default-ulimits":
		limits := map[string]map[string]int64{}
		for _, v := range values {
			name, limit, _ := strings.Cut(v, "=")
			softText, hardText, ok := strings.Cut(limit, ":")
			if !ok {
				hardText = softText
			}
			soft, err := strconv.ParseInt(softText, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%q is not a limit", v)
			}
			hard, err := strconv.ParseInt(hardText, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%q is not a limit", v)
			}
			limits[name] = map[string]int64{"soft": soft, "hard": hard}
		}
		return json.Marshal(limits)
	case k.kind == boolean:
		on, err := strconv.ParseBool(last)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", last)
		}
		return json.Marshal(on)
	case k.kind == number:
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is not a number", last)
		}
		return json.Marshal(n)
	case k.kind == list:
		return json.Marshal(values)
	case k.kind == texts:
		m := map[string]string{}
		for _, v := range values {
			name, value, _ := strings.Cut(v, "=")
			m[name] = value
		}
		return json.Marshal(m)
	case k.kind == object:
		return json.Marshal(map[string]any{"flag": values})
	default:
		return json.Marshal(last)
	}
}
