//go:build !linux

package apiserver

import "syscall"

// diesWithParent does nothing where the kernel has no such thing: a test that is killed leaves its children.
func diesWithParent() *syscall.SysProcAttr { return nil }
