package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// CheckpointDir is where dockershim keeps one JSON file a sandbox.
const CheckpointDir = "/var/lib/dockershim/sandbox"

// checkpoint is the part of dockershim's file (docker_checkpoint.go, schema v1) that CNI DEL needs.
type checkpoint struct {
	Version string `json:"version"`
	Data    *struct {
		PortMappings []*struct {
			Protocol      string `json:"protocol"`
			ContainerPort int32  `json:"container_port"`
			HostPort      int32  `json:"host_port"`
			HostIP        string `json:"host_ip"`
		} `json:"port_mappings"`
	} `json:"data"`
}

// CheckpointPortMappings reads the host ports of a sandbox from dockershim's checkpoint in dir (empty means CheckpointDir).
// A sandbox without a checkpoint has none. The checksum is not verified: a wrong host port at worst deletes no rule.
func CheckpointPortMappings(dir, sandboxID string) ([]PortMapping, error) {
	if dir == "" {
		dir = CheckpointDir
	}
	path := filepath.Join(dir, filepath.Base(sandboxID))
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read dockershim checkpoint: %w", err)
	}
	mappings, err := parseCheckpoint(data)
	if err != nil {
		return nil, fmt.Errorf("read dockershim checkpoint %s: %w", path, err)
	}
	return mappings, nil
}

func parseCheckpoint(data []byte) ([]PortMapping, error) {
	var parsed checkpoint
	if err := json.Unmarshal(data, &parsed); err != nil {
		return nil, err
	}
	if parsed.Version != "v1" {
		return nil, fmt.Errorf("schema %q is not v1", parsed.Version)
	}
	if parsed.Data == nil {
		return nil, nil
	}
	var mappings []PortMapping
	for _, m := range parsed.Data.PortMappings {
		if m == nil || m.HostPort <= 0 {
			continue // a container port that is not on the host
		}
		protocol := strings.ToLower(m.Protocol)
		if protocol == "" {
			protocol = "tcp"
		}
		mappings = append(mappings, PortMapping{HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: protocol, HostIP: m.HostIP})
	}
	return mappings, nil
}
