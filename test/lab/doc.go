// Package lab runs real Kubernetes clusters on one Linux machine: each node is a Debian system that systemd-nspawn
// boots, with Docker, containerd, CNI plugins and a kubelet as ordinary systemd units, laid out as kubeadm lays them out;
// the control plane is upstream's own binaries, as processes of the machine. Nothing in it is faked.
//
// It needs root. It does not isolate a node from the machine's kernel: sysctls that a kubelet sets are remembered and
// restored by Down. Only one lab runs at a time, since bridge and addresses are fixed.
//
// End-to-end tests and the command test/lab/cmd/lab call it.
package lab
