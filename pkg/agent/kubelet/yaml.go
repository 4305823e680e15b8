package kubelet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// setYAML sets a top-level field, a string or a number, of a YAML or JSON file and leaves all else as it is: a serialiser would drop
// comments. What it made is parsed again and compared, so that a form it does not understand is an error, not damage.
func setYAML(data []byte, field, value string) ([]byte, error) {
	var before map[string]any
	if err := yaml.Unmarshal(data, &before); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	if now, ok := before[field]; ok && fmt.Sprint(now) == value {
		return data, nil
	}
	set := setLine
	if json.Valid(data) { // as in Amazon's images
		set = setMember
	}
	made := set(data, field, value)
	var after map[string]any
	if err := yaml.Unmarshal(made, &after); err != nil {
		return nil, fmt.Errorf("cannot set %s line by line: %w", field, err)
	}
	if now, ok := after[field]; !ok || fmt.Sprint(now) != value {
		return nil, fmt.Errorf("cannot set %s line by line", field)
	}
	delete(before, field)
	delete(after, field)
	if len(before)+len(after) > 0 && !reflect.DeepEqual(before, after) {
		return nil, fmt.Errorf("cannot set %s line by line without changing other fields", field)
	}
	return made, nil
}

// setLine sets a field of a YAML file in block style, by its line or a new one at the end.
func setLine(data []byte, field, value string) []byte {
	line := field + ": " + value
	var out [][]byte
	found := false
	lines := bytes.SplitAfter(data, []byte("\n"))
	for _, old := range lines {
		key, _, ok := strings.Cut(string(old), ":")
		if ok && !found && strings.Trim(key, `"' `) == field && !strings.HasPrefix(key, " ") {
			found = true
			ending := string(old[len(bytes.TrimRight(old, "\r\n")):])
			old = []byte(line + ending)
		}
		out = append(out, old)
	}
	made := bytes.Join(out, nil)
	if !found {
		if len(made) > 0 && !bytes.HasSuffix(made, []byte("\n")) {
			made = append(made, '\n')
		}
		made = append(made, line+"\n"...)
	}
	return made
}

// setMember sets a member of a JSON object: in its place, or as the first, set like the one that was the first. What is no object stays
// as it is.
func setMember(data []byte, field, value string) []byte {
	if _, err := strconv.Atoi(value); err != nil {
		value = strconv.Quote(value)
	}
	splice := func(from, to int, with string) []byte {
		return slices.Concat(data[:from], []byte(with), data[to:])
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return data
	}
	start := int(decoder.InputOffset())
	for decoder.More() {
		key, err := decoder.Token()
		var member json.RawMessage
		if err == nil {
			err = decoder.Decode(&member)
		}
		if err != nil {
			return data
		}
		if end := int(decoder.InputOffset()); key == field {
			return splice(end-len(member), end, value)
		}
	}
	rest := bytes.TrimLeft(data[start:], " \t\r\n")
	if rest[0] == '}' {
		return splice(start, start, strconv.Quote(field)+": "+value)
	}
	indent := string(data[start : len(data)-len(rest)])
	return splice(start, start, indent+strconv.Quote(field)+": "+value+",")
}

// config is what the agent needs of a KubeletConfiguration.
type config struct {
	Kind                     string `json:"kind"`
	ContainerRuntimeEndpoint string `json:"containerRuntimeEndpoint"`
	ImageServiceEndpoint     string `json:"imageServiceEndpoint"`
	CgroupDriver             string `json:"cgroupDriver"`
	HealthzPort              *int   `json:"healthzPort"`
	HealthzBindAddress       string `json:"healthzBindAddress"`
	ContainerLogMaxSize      string `json:"containerLogMaxSize"`
	ContainerLogMaxFiles     *int   `json:"containerLogMaxFiles"`

	EvictionHard                 map[string]string `json:"evictionHard"`
	EvictionSoft                 map[string]string `json:"evictionSoft"`
	MergeDefaultEvictionSettings *bool             `json:"mergeDefaultEvictionSettings"`
}

func parseConfig(data []byte) (config, error) {
	var c config
	if err := yaml.Unmarshal(data, &c); err != nil {
		return config{}, err
	}
	return c, nil
}

// kubeconfig is the part of a kubeconfig that a kubelet's has.
type kubeconfig struct {
	CurrentContext string `json:"current-context"`
	Clusters       []struct {
		Name    string `json:"name"`
		Cluster struct {
			Server        string `json:"server"`
			CA            string `json:"certificate-authority"`
			CAData        []byte `json:"certificate-authority-data"`
			Insecure      bool   `json:"insecure-skip-tls-verify"`
			TLSServerName string `json:"tls-server-name"`
		} `json:"cluster"`
	} `json:"clusters"`
	Contexts []struct {
		Name    string `json:"name"`
		Context struct {
			Cluster string `json:"cluster"`
			User    string `json:"user"`
		} `json:"context"`
	} `json:"contexts"`
	Users []struct {
		Name string `json:"name"`
		User struct {
			Cert      string `json:"client-certificate"`
			CertData  []byte `json:"client-certificate-data"`
			Key       string `json:"client-key"`
			KeyData   []byte `json:"client-key-data"`
			Token     string `json:"token"`
			TokenFile string `json:"tokenFile"`
		} `json:"user"`
	} `json:"users"`
}

var errNoContext = errors.New("no current context")
