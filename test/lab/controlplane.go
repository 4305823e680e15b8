package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// component is one program of the control plane.
type component struct {
	name string
	args []string
}

// components are those of the control plane, in the order in which they start.
func components() []component {
	pki, url := filepath.Join(stateDir, "pki"), "http://"+hostIP+":2379"
	key := func(name string) string { return filepath.Join(pki, name) }
	return []component{
		{"etcd", []string{
			"--data-dir=" + filepath.Join(stateDir, "etcd"), "--listen-client-urls=" + url, "--advertise-client-urls=" + url,
			"--listen-peer-urls=http://" + hostIP + ":2380", "--initial-advertise-peer-urls=http://" + hostIP + ":2380",
			"--initial-cluster=default=http://" + hostIP + ":2380", "--unsafe-no-fsync",
		}},
		{apiServer, []string{
			"--etcd-servers=" + url, "--advertise-address=" + hostIP, "--bind-address=" + hostIP, "--secure-port=6443",
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--client-ca-file=" + key("ca.crt"), "--tls-cert-file=" + key("apiserver.crt"), "--tls-private-key-file=" + key("apiserver.key"),
			"--kubelet-client-certificate=" + key("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + key("apiserver-kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP,Hostname", "--service-cluster-ip-range=" + serviceRange,
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file=" + key("sa.key"),
			"--service-account-signing-key-file=" + key("sa.key"), "--cert-dir=" + filepath.Join(stateDir, "run"),
		}},
		{"kube-controller-manager", []string{
			"--kubeconfig=" + filepath.Join(stateDir, "controller-manager.conf"), "--bind-address=" + hostIP, "--leader-elect=false",
			"--use-service-account-credentials=true", "--service-account-private-key-file=" + key("sa.key"), "--root-ca-file=" + key("ca.crt"),
			"--cluster-signing-cert-file=" + key("ca.crt"), "--cluster-signing-key-file=" + key("ca.key"), "--controllers=*,bootstrapsigner,tokencleaner",
			"--cert-dir=" + filepath.Join(stateDir, "run"),
		}},
		{"kube-scheduler", []string{
			"--kubeconfig=" + filepath.Join(stateDir, "scheduler.conf"), "--bind-address=" + hostIP, "--leader-elect=false",
			"--cert-dir=" + filepath.Join(stateDir, "run"),
		}},
	}
}

const apiServer = "kube-apiserver"

// startControlPlane starts etcd, the API server, the controller manager and the scheduler as processes of the machine.
func (l controlPlane) startControlPlane(ctx context.Context) error {
	for _, c := range components() {
		build := l.profile.controlPlane
		if c.name == "etcd" {
			build = "etcd"
		}
		if err := l.link(ctx, build, c.name); err != nil {
			return err
		}
		if err := l.startComponent(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// startComponent starts a program of the control plane; the API server is waited for.
func (l controlPlane) startComponent(ctx context.Context, c component) error {
	if err := l.start(c.name, filepath.Join(l.BinDir(), c.name), c.args...); err != nil {
		return err
	}
	if c.name == apiServer {
		return l.waitAPIServer(ctx)
	}
	return nil
}

// makeKeys makes the certificates and kubeconfig files of the control plane and of the admin.
func (l controlPlane) makeKeys() error {
	p, err := newPKI(filepath.Join(stateDir, "pki"))
	if err != nil {
		return err
	}
	l.pki = p
	if err := p.server("apiserver", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", kubernetesIP, hostIP, "localhost", "127.0.0.1"); err != nil {
		return err
	}
	for _, c := range []struct{ name, user, group, kubeconfig string }{
		{"apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters", ""},
		{"sa", "service-accounts", "", ""},
		{"admin", "kubernetes-admin", "system:masters", "admin.conf"},
		{"controller-manager", "system:kube-controller-manager", "", "controller-manager.conf"},
		{"scheduler", "system:kube-scheduler", "", "scheduler.conf"},
	} {
		if err := p.client(c.name, c.user, c.group); err != nil {
			return err
		}
		if c.kubeconfig == "" {
			continue
		}
		if err := l.writeKubeconfig(filepath.Join(stateDir, c.kubeconfig), c.user, p.path(c.name+".crt"), p.path(c.name+".key")); err != nil {
			return err
		}
	}
	return nil
}

// writeKubeconfig writes a kubeconfig whose certificates are inside, so that the file can be copied.
func (l *cluster) writeKubeconfig(path, user, cert, key string) error {
	data, err := renderKubeconfig(user, l.pki.path("ca.crt"), cert, key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

// link puts a binary of a build into BinDir.
func (l *cluster) link(ctx context.Context, build, name string) error {
	target, err := l.cache.binary(ctx, build, name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.BinDir(), 0o755); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	path := filepath.Join(l.BinDir(), name)
	if err := errors.Join(os.RemoveAll(path), os.Symlink(target, path)); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return nil
}

// start starts a program that outlives this process, with its output in the state folder's logs, and remembers it.
func (l controlPlane) start(name, path string, args ...string) error {
	if err := os.MkdirAll(filepath.Join(stateDir, "logs"), 0o755); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	log, err := os.OpenFile(l.logFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, stateDir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = cmd.Wait() }() // reaps it while this process lives
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Processes = slices.DeleteFunc(l.state.Processes, func(p process) bool { return p.Name == name && !p.alive() })
	l.state.Processes = append(l.state.Processes, processOf(name, cmd.Process.Pid))
	return l.state.save()
}

func (l *cluster) logFile(name string) string { return filepath.Join(stateDir, "logs", name+".log") }

// waitAPIServer waits until the API server says that it is ready.
func (l controlPlane) waitAPIServer(ctx context.Context) error {
	key := func(name string) string { return filepath.Join(stateDir, "pki", name) }
	ca, err := os.ReadFile(key("ca.crt"))
	if err != nil {
		return fmt.Errorf("load CA: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(key("admin.crt"), key("admin.key"))
	if err != nil {
		return fmt.Errorf("load admin key: %w", err)
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true,
	}}
	err = poll(ctx, patience, func() error {
		if p, ok := l.process(apiServer); !ok || !p.alive() {
			return fatalError{errors.New("it ended")}
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, apiServerURL+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", resp.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for kube-apiserver: %w\n%s\n%s", err, l.tail("etcd", 5), l.tail("kube-apiserver", 15))
	}
	return nil
}

// tail returns the last lines of a log of the control plane.
func (l *cluster) tail(name string, lines int) string {
	data, err := os.ReadFile(l.logFile(name))
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return "--- " + l.logFile(name) + "\n" + strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (l controlPlane) process(name string) (process, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.state.Processes {
		if p.Name == name {
			return p, true
		}
	}
	return process{}, false
}

// patience is how long a part of the lab may take to come up on a machine that has much else to do.
const patience = 4 * time.Minute

// fatalError ends a poll at once.
type fatalError struct{ error }

// poll calls f until it returns nil, and gives its last error up after the time-out.
func poll(ctx context.Context, timeout time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		var fatal fatalError
		if errors.As(err, &fatal) {
			return fatal.error
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}
