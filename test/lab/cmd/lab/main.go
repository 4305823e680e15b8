// Command lab runs real Kubernetes nodes on this machine; see test/lab/README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kubectl-runtime/kubectl-runtime/test/lab"
)

const usage = `lab runs real Kubernetes nodes on this machine. It needs root.

  lab up --profile dockershim|cri-dockerd|oldest [--name NAME] [--nodes N] [--cgroup-driver systemd|cgroupfs]
         [--overlay [NODE=]DIR]… [--registry-auth] [--keep]
  lab down [NAME]               removes everything; with a name, only the lab of that name
  lab status
  lab kubeconfig                prints the path of the admin's kubeconfig
  lab bin                       prints the folder with kubectl and crictl
  lab kubectl ARG…              runs kubectl as admin
  lab exec NODE -- CMD [ARG…]   runs a program on a node
  lab poweroff NODE             as a power cut does
  lab boot NODE
  lab apiserver stop|start      takes the API server away from everyone, and brings it back
  lab load NODE IMAGE.tar [REF] a docker archive, or a root file system that becomes the image REF
  lab push NODE REF             an image of the node's Docker to the lab's registry; prints what to pull
  lab build [PROFILE…]          only fills the cache
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && len(os.Args) > 1 && slices.Contains([]string{"exec", "kubectl"}, os.Args[1]):
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || slices.Contains([]string{"help", "-h", "--help"}, args[0]) {
		fmt.Print(usage)
		return nil
	}
	command, args := args[0], args[1:]
	switch command {
	case "up":
		return up(ctx, args)
	case "build":
		if len(args) == 0 {
			args = []string{lab.CRIDockerd, lab.Dockershim}
		}
		return lab.Prepare(ctx, os.Stderr, args...)
	}
	l, err := lab.Open(os.Stderr)
	if command == "down" && errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "lab: none is up")
		return nil
	}
	if err != nil {
		return err
	}
	return runOn(ctx, l, command, args)
}

func runOn(ctx context.Context, l *lab.Lab, command string, args []string) error {
	need := map[string]int{"apiserver": 1, "poweroff": 1, "boot": 1, "load": 2, "push": 2, "exec": 2}
	if len(args) < need[command] {
		return fmt.Errorf("%s: too few arguments\n%s", command, usage)
	}
	switch command {
	case "down":
		if len(args) > 0 && args[0] != l.Name() {
			return fmt.Errorf("down: the lab that is up is %s, not %s", l.Name(), args[0])
		}
		return l.Down()
	case "status":
		return status(ctx, l)
	case "kubeconfig":
		fmt.Println(l.Kubeconfig())
	case "bin":
		fmt.Println(l.BinDir())
	case "kubectl":
		cmd := exec.CommandContext(ctx, l.BinDir()+"/kubectl", args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+l.Kubeconfig())
		return attach(cmd)
	case "exec":
		node, args := args[0], args[1:]
		if args[0] == "--" {
			args = args[1:]
		}
		cmd, err := l.Command(ctx, node, args...)
		if err != nil {
			return err
		}
		return attach(cmd)
	case "poweroff":
		return l.PowerOff(args[0])
	case "boot":
		return l.Boot(ctx, args[0])
	case "apiserver":
		switch args[0] {
		case "stop":
			return l.StopAPIServer()
		case "start":
			return l.StartAPIServer(ctx)
		}
		return fmt.Errorf("apiserver %q: not one of stop, start", args[0])
	case "load":
		return l.LoadImage(ctx, args[0], args[1], strings.Join(args[2:], ""))
	case "push":
		name, err := l.PushImage(ctx, args[0], args[1])
		if err != nil {
			return err
		}
		for _, registry := range l.Registries() {
			fmt.Println(registry.Address + "/" + name)
		}
	default:
		return fmt.Errorf("unknown command %q\n%s", command, usage)
	}
	return nil
}

func up(ctx context.Context, args []string) error {
	o := lab.Options{Log: os.Stderr}
	flags := flag.NewFlagSet("lab up", flag.ContinueOnError)
	flags.StringVar(&o.Profile, "profile", "", "dockershim or cri-dockerd")
	flags.StringVar(&o.Name, "name", "", "shown by status (default the profile)")
	flags.IntVar(&o.Nodes, "nodes", 2, "number of nodes")
	flags.StringVar(&o.CgroupDriver, "cgroup-driver", "systemd", "of Docker and the kubelet: systemd or cgroupfs")
	flags.Func("overlay", "folder whose files are copied over every node's root before it boots, or NODE=DIR for one node", func(value string) error {
		node, dir, ok := strings.Cut(value, "=")
		switch {
		case !ok:
			o.Overlay = value
		case o.Overlays == nil:
			o.Overlays = map[string]string{node: dir}
		default:
			o.Overlays[node] = dir
		}
		return nil
	})
	flags.BoolVar(&o.RegistryAuth, "registry-auth", false, "a second registry with TLS and basic authentication")
	flags.BoolVar(&o.AgentCNI, "agent-cni", false, "a CNI plugin whose ADD and DEL fail unless its agent, a DaemonSet's pod, runs on the node")
	flags.BoolVar(&o.Keep, "keep", false, "leave a lab that failed to come up")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.Profile == "" || flags.NArg() > 0 {
		return fmt.Errorf("up: name a --profile\n%s", usage)
	}
	started := time.Now()
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "lab: up after %.0f s: export KUBECONFIG=%s PATH=%s:$PATH\n", time.Since(started).Seconds(), l.Kubeconfig(), l.BinDir())
	return nil
}

func status(ctx context.Context, l *lab.Lab) error {
	fmt.Println(l.Summary())
	for _, node := range l.Nodes() {
		power := "off"
		if l.Running(node) {
			power = "on"
		}
		fmt.Printf("%s\t%s\t%s\n", node, l.NodeIP(node), power)
	}
	out, err := l.Kubectl(ctx, "get", "nodes", "-o", "wide")
	fmt.Print(out)
	return err
}

func attach(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
