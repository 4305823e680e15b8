package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// rootfsEdition is part of every root file system's key: raise it when rootfs makes something else of the same packages.
const rootfsEdition = "1"

// rootfs returns the folder with the profile's Debian system, which nodes are copied from. Making it takes about a minute,
// once.
func (c cache) rootfs(ctx context.Context, p profile) (string, error) {
	key := []string{rootfsEdition, p.suite, strings.Join(p.packages, ",")}
	for _, b := range p.fromBuilds {
		dir, err := c.folder(ctx, b)
		if err != nil {
			return "", err
		}
		key = append(key, filepath.Base(dir))
	}
	dir := filepath.Join(c.dir, "rootfs", p.suite+"-"+keyOf(key...))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	_, _ = fmt.Fprintf(c.log, "lab: making a Debian %s root file system (once; kept in %s)\n", p.suite, dir)
	tmp := dir + ".tmp"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(filepath.Dir(tmp), 0o755)); err != nil {
		return "", fmt.Errorf("make root file system: %w", err)
	}
	args := []string{"--variant=minbase", "--quiet"}
	for _, unused := range []string{"man", "doc", "info", "locale"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+unused+"/*")
	}
	args = append(args, "--include="+strings.Join(p.packages, ","), p.suite, tmp)
	if _, err := output(ctx, "mmdebstrap", args...); err != nil {
		return "", fmt.Errorf("make root file system: %w", err)
	}
	for _, b := range p.fromBuilds {
		if err := c.replaceBinaries(ctx, b, filepath.Join(tmp, "usr/bin")); err != nil {
			return "", err
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", fmt.Errorf("keep root file system: %w", err)
	}
	return dir, nil
}

// replaceBinaries copies every binary of a build over the one that Debian has in that folder.
func (c cache) replaceBinaries(ctx context.Context, build, to string) error {
	dir, err := c.folder(ctx, build)
	if err != nil {
		return err
	}
	binaries, err := filepath.Glob(filepath.Join(dir, "[a-z]*"))
	if err != nil || len(binaries) == 0 {
		return fmt.Errorf("find the binaries of build %s: none in %s", build, dir)
	}
	_, err = output(ctx, "cp", append(binaries, to)...)
	return err
}

// images returns the image archives that every node of the profile has, by reference: tars for `docker import`, made once.
func (c cache) images(ctx context.Context, p profile, rootfs string) ([]image, error) {
	pause := image{ref: p.pauseImage, changes: []string{`ENTRYPOINT ["/pause"]`}, build: c.pauseImage}
	busybox := image{ref: "lab.local/busybox:1", changes: []string{`ENV PATH=/bin`, `CMD ["/bin/sh"]`}, build: busyboxImage}
	coredns := image{ref: "lab.local/coredns:v1", changes: []string{`ENTRYPOINT ["/coredns"]`}, build: func(ctx context.Context, _ string, root string) error {
		binary, err := c.binary(ctx, "coredns", "coredns")
		if err != nil {
			return err
		}
		_, err = output(ctx, "cp", binary, filepath.Join(root, "coredns"))
		return err
	}}
	proxy := image{ref: "lab.local/kube-proxy:v" + p.kubeVersion, changes: []string{`ENV PATH=/usr/sbin:/usr/bin:/bin`}, build: func(ctx context.Context, rootfs, root string) error {
		return c.proxyImage(ctx, p, rootfs, root)
	}}
	images := []image{pause, busybox, coredns, proxy}
	key := []string{filepath.Base(rootfs), rootfsEdition}
	for _, build := range []string{"coredns", p.controlPlane} {
		dir, err := c.folder(ctx, build)
		if err != nil {
			return nil, err
		}
		key = append(key, filepath.Base(dir))
	}
	for i := range images {
		img := &images[i]
		img.tar = filepath.Join(c.dir, "images", strings.NewReplacer("/", "_", ":", "_").Replace(img.ref)+"-"+keyOf(key...)+".tar")
		if _, err := os.Stat(img.tar); err == nil {
			continue
		}
		if err := c.makeImage(ctx, *img, rootfs); err != nil {
			return nil, fmt.Errorf("make image %s: %w", img.ref, err)
		}
	}
	return images, nil
}

// image is an image of one layer: a tar of its root, and what `docker import -c` adds to its configuration.
type image struct {
	ref, tar string
	changes  []string
	build    func(ctx context.Context, rootfs, root string) error
}

func (c cache) makeImage(ctx context.Context, img image, rootfs string) error {
	if err := os.MkdirAll(filepath.Dir(img.tar), 0o755); err != nil {
		return err
	}
	root, err := os.MkdirTemp(filepath.Dir(img.tar), "root-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	for _, dir := range []string{"bin", "etc", "tmp", "usr/bin", "usr/sbin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chmod(root, 0o755), os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky), os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644)); err != nil {
		return err
	}
	if err := img.build(ctx, rootfs, root); err != nil {
		return err
	}
	tmp := img.tar + ".tmp"
	if _, err := output(ctx, "tar", "-C", root, "--owner=0", "--group=0", "--numeric-owner", "-cf", tmp, "."); err != nil {
		return err
	}
	return os.Rename(tmp, img.tar)
}

func (c cache) pauseImage(ctx context.Context, _, root string) error {
	return c.goBuild(ctx, "pause", filepath.Join(root, "pause"))
}

// goBuild builds one of the lab's own programs, statically.
func (c cache) goBuild(ctx context.Context, name, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, "./test/lab/cmd/"+name)
	cmd.Dir, cmd.Env = c.repo, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return nil
}

// busyboxImage is Debian's static busybox with a link for each of its applets.
func busyboxImage(ctx context.Context, rootfs, root string) error {
	busybox := filepath.Join(rootfs, "usr/bin/busybox")
	if _, err := output(ctx, "cp", busybox, filepath.Join(root, "bin/busybox")); err != nil {
		return err
	}
	applets, err := output(ctx, busybox, "--list")
	if err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(applets) {
		if applet == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			return err
		}
	}
	return nil
}

// proxyImage is kube-proxy with the programs it calls, taken from the node's own Debian: iptables in the nft variant, as
// Docker there uses, and conntrack.
func (c cache) proxyImage(ctx context.Context, p profile, rootfs, root string) error {
	if err := busyboxImage(ctx, rootfs, root); err != nil {
		return err
	}
	binary, err := c.binary(ctx, p.controlPlane, "kube-proxy")
	if err != nil {
		return err
	}
	if _, err := output(ctx, "cp", binary, filepath.Join(root, "usr/bin/kube-proxy")); err != nil {
		return err
	}
	programs := []string{"/usr/sbin/xtables-nft-multi", "/usr/sbin/conntrack"}
	plugins, err := output(ctx, "chroot", rootfs, "/bin/sh", "-c", "ls /usr/lib/*/xtables/*.so")
	if err != nil {
		return err
	}
	files := append(strings.Fields(plugins), programs...)
	libs, err := output(ctx, "chroot", rootfs, "/bin/sh", "-c",
		"ldd "+strings.Join(files, " ")+` | sed -nE 's/^[^\/]*(\/[^ :]+) \(.*/\1/p' | sort -u`)
	if err != nil {
		return err
	}
	for file := range strings.FieldsSeq(strings.Join(files, " ") + " " + libs) {
		if _, err := output(ctx, "install", "-D", filepath.Join(rootfs, file), filepath.Join(root, file)); err != nil {
			return err
		}
	}
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		if err := os.Symlink("xtables-nft-multi", filepath.Join(root, "usr/sbin", name)); err != nil {
			return err
		}
	}
	return nil
}
