package lab

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"
)

// Two registries serve the same images: one as it is, one with TLS and basic authentication.
const (
	plainRegistry = hostIP + ":5000"
	authRegistry  = hostIP + ":5443"
	authUser      = "lab"
	authPassword  = "secret"
	// authEntry is the line of the two in htpasswd's format, which knows bcrypt alone.
	authEntry = `lab:$2y$05$S6n8XkbYpKCUT.uGsBiB8.qsPO7FjcZFPgk4b6FF9TuOZRxwC6S6.`
)

// Registry tells where images can be pulled from, and how.
type Registry struct {
	Address        string // HOST:PORT, in front of an image's name
	User, Password string // empty where none are asked for
	CA             string // file with the certificate of who signed the registry's own; empty for plain HTTP
	AccessLog      string // file with a line in Apache's combined format for each answer
}

// Registries returns the registries that run: the plain one, and with Options.RegistryAuth the one with TLS as well.
func (l controlPlane) Registries() []Registry {
	list := []Registry{{Address: plainRegistry, AccessLog: l.logFile("registry")}}
	if l.state.RegistryAuth {
		list = append(list, Registry{
			Address: authRegistry, User: authUser, Password: authPassword, CA: filepath.Join(stateDir, "pki/ca.crt"), AccessLog: l.logFile("registry-auth"),
		})
	}
	return list
}

// startRegistries starts them and waits until they answer.
func (l controlPlane) startRegistries(ctx context.Context) error {
	if err := l.link(ctx, "registry", "registry"); err != nil {
		return err
	}
	for _, r := range l.Registries() {
		data := map[string]string{"Address": r.Address, "Storage": filepath.Join(stateDir, "registry")}
		if r.User != "" {
			if err := l.pki.server("registry", hostIP); err != nil {
				return err
			}
			htpasswd := filepath.Join(stateDir, "htpasswd")
			if err := writeFile(htpasswd, []byte(authEntry+"\n"), 0o600); err != nil {
				return err
			}
			data["Cert"], data["Key"], data["Htpasswd"] = l.pki.path("registry.crt"), l.pki.path("registry.key"), htpasswd
		}
		content, err := render("registry.yaml", data)
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(filepath.Base(r.AccessLog), ".log")
		config := filepath.Join(stateDir, name+".yaml")
		if err := writeFile(config, content, 0o600); err != nil {
			return err
		}
		if err := l.start(name, filepath.Join(l.BinDir(), "registry"), "serve", config); err != nil {
			return err
		}
		err = poll(ctx, patience, func() error {
			conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", r.Address)
			if err != nil {
				return err
			}
			return conn.Close()
		})
		if err != nil {
			return fmt.Errorf("wait for %s: %w\n%s", name, err, l.tail(name, 10))
		}
	}
	return nil
}

// PushImage pushes an image that a node's Docker has to the lab's registries, and returns its name and tag there, without
// the registry's address.
func (l *Lab) PushImage(ctx context.Context, node, ref string) (string, error) {
	name := ref[strings.LastIndexByte(ref, '/')+1:]
	target := plainRegistry + "/" + name
	for _, args := range [][]string{{"tag", ref, target}, {"push", "--quiet", target}, {"rmi", "--no-prune", target}} {
		if _, err := l.Exec(ctx, node, append([]string{"docker"}, args...)...); err != nil {
			return "", fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return name, nil
}
