// Command cni-needs-agent is a CNI plugin for a chain that, like those of Cilium, Amazon and Antrea, can do nothing without its agent on the
// node: ADD and DEL fail unless it answers. It changes nothing itself. `cni-needs-agent serve SOCKET` is the agent.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	default:
		plugin()
		return
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// plugin answers as the CNI specification says: a result or an error on standard output.
func plugin() {
	command := os.Getenv("CNI_COMMAND")
	if command == "VERSION" {
		fmt.Println(`{"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0"]}`)
		return
	}
	var conf struct {
		CNIVersion string          `json:"cniVersion"`
		Socket     string          `json:"socket"`
		PrevResult json.RawMessage `json:"prevResult"`
	}
	in, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = json.Unmarshal(in, &conf)
	}
	if err == nil {
		err = ping(conf.Socket)
	}
	if err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{
			"cniVersion": conf.CNIVersion, "code": 11, "msg": command + " needs the agent on this node: is it running? " + err.Error(),
		})
		os.Exit(1)
	}
	if command == "ADD" {
		fmt.Println(string(conf.PrevResult))
	}
}

// ping succeeds where an agent answers.
func ping(socket string) error {
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 2))
	return err
}

// serve answers until it gets a signal.
func serve(socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-end
		_ = listener.Close()
	}()
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		_, _ = conn.Write([]byte("ok"))
		_ = conn.Close()
	}
}
