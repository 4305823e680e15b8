package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// stateDir holds what a running lab is made of: lab.json, logs, keys, the kubeconfig. It is gone after Down.
const stateDir = "/run/kubectl-runtime-lab"

// state is what Down needs to know; it is written before or right after each thing is made.
type state struct {
	Name         string            `json:"name"`
	Repo         string            `json:"repo"` // the checkout that made it
	CacheDir     string            `json:"cacheDir"`
	Profile      string            `json:"profile"`
	Driver       string            `json:"cgroupDriver"`
	Started      time.Time         `json:"started"`
	Ready        bool              `json:"ready"`
	Processes    []process         `json:"processes"`
	Nodes        []*node           `json:"nodes"`
	Sysctls      map[string]string `json:"sysctls"`
	Firewall     bool              `json:"firewall"`
	RegistryAuth bool              `json:"registryAuth"`
	AgentCNI     bool              `json:"agentCNI"`
}

// process names a process beyond the reuse of its PID, by its start time in clock ticks since boot (proc(5)).
type process struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Start string `json:"start"`
}

// processOf describes the process with that PID.
func processOf(name string, pid int) process {
	stat, _ := procStat(pid)
	return process{Name: name, PID: pid, Start: stat.start}
}

func (p process) alive() bool {
	stat, err := procStat(p.PID)
	return err == nil && p.PID > 0 && stat.start == p.Start && stat.state != "Z"
}

// kill sends a signal if the process is still the one meant.
func (p process) kill(sig syscall.Signal) {
	if p.alive() {
		_ = syscall.Kill(p.PID, sig)
	}
}

type stat struct {
	state, start string
	parent       int
}

func procStat(pid int) (stat, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(data))
}

// parseStat reads a line of /proc/PID/stat. The command's name in it may hold blanks and parentheses.
func parseStat(line string) (stat, error) {
	end := strings.LastIndexByte(line, ')')
	fields := strings.Fields(line[end+1:])
	if end < 0 || len(fields) < 20 {
		return stat{}, fmt.Errorf("parse process state %q: too short", line)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return stat{}, fmt.Errorf("parse process state %q: %w", line, err)
	}
	return stat{state: fields[0], parent: parent, start: fields[19]}, nil
}

// alive tells whether anything of the lab runs: its control plane, a registry or a node.
func (s *state) alive() bool {
	for _, n := range s.Nodes {
		if n.Nspawn.alive() || n.Init.alive() {
			return true
		}
	}
	return slices.ContainsFunc(s.Processes, process.alive)
}

// lock takes the lab's lock for as long as the returned file is open: up and down never overlap.
func lock() (*os.File, error) {
	f, err := os.OpenFile(stateDir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the lab: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, errors.New("lock the lab: another `lab up` or `lab down` is under way")
	}
	return f, nil
}

func (s *state) save() error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(stateDir, "lab.json")
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return fmt.Errorf("save lab state: %w", err)
	}
	return os.Rename(path+".tmp", path)
}

// load reads the state of the lab that runs or was left behind; fs.ErrNotExist if there is none.
func load() (*state, error) {
	data, err := os.ReadFile(filepath.Join(stateDir, "lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no lab is up: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("load lab state: %w", err)
	}
	s := &state{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("load lab state: %w", err)
	}
	return s, nil
}
