#!/usr/bin/env bash
# Runs a command beside a real S3 server, Ceph's, that lives as long as the command:
#
#     tests/store/with_ceph.sh python -m pytest tests/store
#
# One monitor, one OSD that keeps objects in memory, and the S3 gateway, on free ports of the loopback interface. No
# docker, no system service; everything lies in a temporary folder. The command finds the server, and a second user
# who owns nothing, in its environment. Needs Debian's ceph-mon, ceph-osd, radosgw and ceph-common.
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: $0 COMMAND [ARGUMENT...]" >&2; exit 2; }
for program in ceph-mon ceph-osd radosgw radosgw-admin monmaptool; do
  command -v "$program" >/dev/null || {
    echo "$program is missing: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common" >&2
    exit 2
  }
done

folder=$(mktemp -d /tmp/ceph-XXXXXX)
stop() {
  for file in "$folder"/run/*.pid; do
    [ -s "$file" ] && kill "$(cat "$file")" 2>/dev/null || true
  done
  for _ in $(seq 50); do
    pgrep -f "$folder/ceph.conf" >/dev/null || break
    sleep 0.1
  done
  for file in "$folder"/run/*.pid; do
    [ -s "$file" ] && kill -9 "$(cat "$file")" 2>/dev/null || true
  done
  rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
secret() { python3 -c 'import secrets; print(secrets.token_hex(20))'; }
monitor=$(free_port)
gateway=$(free_port)
cluster=$(cat /proc/sys/kernel/random/uuid)
export CEPH_CONF="$folder/ceph.conf"
mkdir -p "$folder"/{log,run,mon,osd,rgw}
# debug_rgw 0: at its default level the gateway logs every request. The checks that are off look for disks.
cat >"$CEPH_CONF" <<CONF
[global]
fsid = $cluster
mon_host = v1:127.0.0.1:$monitor
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_warn_on_pool_no_redundancy = false
run_dir = $folder/run
admin_socket = $folder/run/\$name.asok
pid_file = $folder/run/\$name.pid
log_file = $folder/log/\$name.log

[mon.a]
mon_data = $folder/mon

[osd.0]
# Without it the OSD may ask before it knows the cluster's name, and is turned away.
monmap = $folder/monmap
osd_data = $folder/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_class_load_list = *
osd_class_default_list = *

[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:$gateway
rgw_data = $folder/rgw
rgw_enable_usage_log = false
rgw_run_sync_thread = false
debug_rgw = 0
CONF

{
  monmaptool --create --clobber --fsid "$cluster" --addv a "v1:127.0.0.1:$monitor" "$folder/monmap"
  ceph-mon --id a --mkfs --mon-data "$folder/mon" --monmap "$folder/monmap"
  ceph-mon --id a --mon-data "$folder/mon"
  ceph-osd --id 0 --mkfs
  # An OSD in memory makes up its own identity, so the cluster is told of it afterwards.
  ceph osd new "$(cat "$folder/osd/fsid")" 0
  ceph osd crush add osd.0 1 root=default host=localhost
  ceph-osd --id 0
} >"$folder/log/start" 2>&1 || { cat "$folder/log/start" >&2; exit 1; }

user() { radosgw-admin --name client.rgw user create --uid="$1" --display-name="$1" --access-key="$2" --secret-key="$3" >/dev/null; }
AWS_ACCESS_KEY_ID=$(secret) AWS_SECRET_ACCESS_KEY=$(secret) STRANGER_ACCESS_KEY_ID=$(secret) STRANGER_SECRET_ACCESS_KEY=$(secret)
user owner "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"
user stranger "$STRANGER_ACCESS_KEY_ID" "$STRANGER_SECRET_ACCESS_KEY"
radosgw --name client.rgw
for _ in $(seq 150); do
  python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$gateway', timeout=2)" 2>/dev/null && up=yes && break
  sleep 0.2
done
[ "${up:-}" = yes ] || { echo "Ceph's gateway did not start:" >&2; tail "$folder"/log/* >&2; exit 1; }

export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY STRANGER_ACCESS_KEY_ID STRANGER_SECRET_ACCESS_KEY
export AWS_ENDPOINT_URL="http://127.0.0.1:$gateway" AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
export PRIVIMAGE_TEST_S3=$AWS_ENDPOINT_URL
unset CEPH_CONF
echo "$(radosgw --version) at $AWS_ENDPOINT_URL"
"$@"
