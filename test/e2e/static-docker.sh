#!/bin/sh
# Makes of a lab node's packages what Docker's static binaries are: programs in a folder, a unit written by hand, and a containerd that
# dockerd runs as its child. That one is Debian 11's, /root/old.deb: too old for CRI v1. No package of Docker's or containerd's is left.
set -e
systemctl stop kubelet docker.socket docker.service containerd.service
mkdir -p /opt/docker/bin
cp /usr/sbin/dockerd /usr/sbin/docker-proxy /usr/bin/docker-init /usr/bin/docker /opt/docker/bin
cp /usr/sbin/runc /opt/docker/bin/runc.real
if [ -e /usr/local/sbin/runc ]; then # the lab's wrapper
	sed 's,/usr/sbin/runc,/opt/docker/bin/runc.real,' /usr/local/sbin/runc > /opt/docker/bin/runc
else
	cp /opt/docker/bin/runc.real /opt/docker/bin/runc
fi
chmod 755 /opt/docker/bin/runc
dpkg-deb -x /root/old.deb /root/old
cp /root/old/usr/bin/containerd /root/old/usr/bin/containerd-shim* /root/old/usr/bin/ctr /opt/docker/bin
dpkg --remove docker.io
dpkg --purge containerd runc
rm -rf /var/lib/containerd /run/containerd /etc/containerd /root/old
cat > /etc/systemd/system/docker.service <<'END_OF_UNIT'
[Unit]
Description=Docker Application Container Engine
After=network-online.target
Wants=network-online.target
[Service]
Type=notify
Environment=PATH=/opt/docker/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=/opt/docker/bin/dockerd -H unix:///var/run/docker.sock
Restart=always
RestartSec=2
LimitNOFILE=524288
TasksMax=infinity
Delegate=yes
KillMode=process
[Install]
WantedBy=multi-user.target
END_OF_UNIT
ln -s /opt/docker/bin/docker /usr/local/bin/docker
systemctl daemon-reload
systemctl enable docker.service
tries=0
until systemctl start docker.service; do # dockerd gives its containerd 15 seconds, which a busy machine may need
	tries=$((tries + 1))
	[ "$tries" -lt 5 ] || { journalctl --no-pager -n 30 -u docker.service >&2; exit 1; }
done
systemctl start kubelet
