# shellcheck shell=bash
# What the scripts of the roles share. They run on a machine, as root, as often as anybody likes: a second run changes nothing, and one
# that was killed is finished by the next. Sourced, never run.
#
# A machine is given a directory (/vagrant) that holds all that it needs: these scripts, machine.env that says which machine it is, and
# root/, the files that belong on it. Nothing is rendered or decided here.

staged=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NAME='' ROLE=''
# shellcheck source=/dev/null
. "$staged/machine.env"

pending=/run/provision # what must not be forgotten by a run that is killed, and is past when the machine was booted
changes=0

say() { printf '%s\n' "$*"; }
die() {
  printf '%s: %s\n' "$NAME" "$*" >&2
  exit 1
}

# changed WHAT: every change is one line, and is counted.
changed() {
  changes=$((changes + 1))
  say "+ $*"
}

# begin: one script at a time. One that was killed may have left an apt-get at work, which has inherited the lock.
begin() {
  [ "$(id -u)" = 0 ] || die "this has to be run as root"
  umask 022
  mkdir -p "$pending"
  exec 9>"$pending/lock"
  flock --nonblock 9 || { say "  waiting for an earlier run to end" && flock 9; }
}

finish() {
  case $changes in
    0) say "$NAME ($ROLE): no change" ;;
    1) say "$NAME ($ROLE): 1 change" ;;
    *) say "$NAME ($ROLE): $changes changes" ;;
  esac
}

# user NAME: somebody who owns a service's processes and nothing else.
user() {
  if id "$1" >/dev/null 2>&1; then return; fi
  useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$1"
  changed "user $1 added"
}

# install_tree installs the files of root/ that differ from the machine's.
install_tree() {
  local file
  while IFS= read -r -d '' file; do
    install_file "$file" "${file#"$staged/root"}"
  done < <(find "$staged/root" -type f -print0 | sort -z)
}

# install_file FROM TO: put a file in its place in one step, so that there is the old one or the new one, and a program that runs can be
# replaced. The mode follows from the place: a directory that is shared with the host may show any.
install_file() {
  local mode=644
  case $2 in */bin/*) mode=755 ;; esac
  if [ ! -L "$2" ] && cmp -s "$1" "$2" && [ "$(stat -c '%a %u %g' "$2")" = "$mode 0 0" ]; then return; fi
  touches "$2"
  mkdir -p "$(dirname "$2")"
  install -m "$mode" -o root -g root "$1" "$2.new"
  sync "$2.new"
  mv -fT "$2.new" "$2"
  changed "$2 changed"
}

# text TO: the same for the text on the standard input.
text() {
  cat >"$pending/text"
  install_file "$pending/text" "$1"
}

# link FROM TO: make FROM a symbolic link to TO.
link() {
  [ "$(readlink "$1")" != "$2" ] || return 0
  touches "$1"
  mkdir -p "$(dirname "$1")"
  ln -sfn "$2" "$1.new"
  mv -fT "$1.new" "$1"
  changed "$1 changed"
}

# touches PATH notes, before PATH is changed, which service has to be restarted for it.
touches() {
  case $1 in
    /etc/consul.d/* | */bin/consul | */consul.service) : >"$pending/consul.service" ;;
    /etc/vault.d/* | */bin/vault | */vault.service) : >"$pending/vault.service" ;;
    */bin/todo | */todo.service) : >"$pending/todo.service" ;;
    /etc/mysql/* | */mysql.service.d/*) : >"$pending/mysql.service" ;;
    */resolved.conf.d/*) : >"$pending/systemd-resolved.service" ;;
  esac
}

# common_packages: what every machine has.
common_packages() { packages systemd-resolved bind9-dnsutils; }

# packages NAME…: install those that are missing. The index of packages is fetched only if the one that the machine has does not do.
packages() {
  local name missing=() tries=0
  for name in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
  done
  ((${#missing[@]} > 0)) || return 0
  say "  installing ${missing[*]}"
  until apt install "${missing[@]}"; do
    ((++tries < 4)) || { tail -n 20 "$pending/apt.log" >&2 && die "the packages ${missing[*]} cannot be installed"; }
    if grep -q 'dpkg --configure -a' "$pending/apt.log"; then
      DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --configure -a </dev/null >"$pending/apt.log" 2>&1 || true
    else
      apt update || sleep 5
    fi
  done
  changed "${missing[*]} installed"
}

# apt COMMAND…: apt-get that asks nothing. It waits for others who install something, and says so.
apt() {
  DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -q -y --no-install-recommends \
    -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@" </dev/null 2>&1 |
    tee "$pending/apt.log" | awk '/^Waiting for/ && !told++ { print "  " $0; fflush() }'
}

# service UNIT: have it enabled, and running with what is installed now. A service that nothing was changed for is left alone: a
# Vault that is restarted is sealed.
service() {
  enabled "$1"
  case $(state "$1" ActiveState) in
    active | activating | reloading)
      if [ -e "$pending/$1" ]; then
        begin_anew restart "$1"
        changed "$1 restarted"
      fi
      ;;
    *)
      begin_anew start "$1"
      changed "$1 started"
      ;;
  esac
  settled "$1"
}

# settled UNIT: no restart is owed to it any more.
settled() { rm -f "$pending/$1"; }

# begin_anew start|restart UNIT: earlier ends of it do not count.
begin_anew() {
  systemctl reset-failed "$2" 2>/dev/null || true
  systemctl --no-block "$1" "$2"
}

# enabled UNIT: have it start with the machine.
enabled() {
  [ "$(state "$1" NeedDaemonReload)" = no ] || systemctl daemon-reload
  [ "$(state "$1" UnitFileState)" != enabled ] || return 0
  systemctl --quiet enable "$1"
  changed "$1 enabled"
}

# started UNIT [SECONDS]: wait until a service that was told to start has done so. One that ends again and again is a fault. One
# that still waits, for a Consul server above all, is not: machines may come up in any order.
started() {
  local limit=$((SECONDS + ${2:-30})) ends
  until [ "$(state "$1" ActiveState)" = active ] && [ -z "$(state "$1" Job)" ]; do
    ends=$(state "$1" NRestarts)
    if [ "$(state "$1" ActiveState)" = failed ] || ((ends > 4 || (ends > 0 && SECONDS >= limit))); then
      journalctl --quiet --no-pager --lines 15 --unit "$(state "$1" Id)" >&2 || true
      die "$1 does not start: see above"
    fi
    ((SECONDS < limit)) || { say "  $1 is not ready yet, and goes on trying" && return; }
    sleep 0.2
  done
}

# state UNIT PROPERTY
state() { systemctl show --property "$2" --value "$1"; }

# agent: what every machine has, a Consul agent, and a resolver that asks it for the domain consul.
agent() {
  user consul
  link /etc/resolv.conf ../run/systemd/resolve/stub-resolv.conf
  service systemd-resolved.service
  nameservers_of_dhclient
  service consul.service
  started consul.service
}

# nameservers_of_dhclient: networkd tells the resolver which nameservers came with an address. dhclient, which some boxes have in its
# place, would write them over the resolver's own resolv.conf, and the resolver would know of none.
nameservers_of_dhclient() {
  local lease interface servers
  [ -d /etc/dhcp/dhclient-enter-hooks.d ] || return 0
  text /etc/dhcp/dhclient-enter-hooks.d/resolved <<'END'
make_resolv_conf() {
  if [ -n "$new_domain_name_servers" ]; then resolvectl dns "$interface" $new_domain_name_servers; fi
}
END
  text /etc/systemd/system/networking.service.d/resolved.conf <<'END'
# When an address comes, the resolver has to listen.
[Unit]
Wants=systemd-resolved.service
After=systemd-resolved.service dbus.service
END
  for lease in /var/lib/dhcp/dhclient.*.leases; do
    [ -e "$lease" ] || continue
    interface=$(sed -n -E 's/^ *interface "(.*)";$/\1/p' "$lease" | tail -n 1)
    servers=$(sed -n -E 's/^ *option domain-name-servers (.*);$/\1/p' "$lease" | tail -n 1 | tr ',' ' ')
    if [ -n "$servers" ] && [ -z "$(resolvectl dns "$interface" | cut -d : -f 2-)" ]; then
      # shellcheck disable=SC2086 # they are several.
      resolvectl dns "$interface" $servers
      changed "nameservers of $interface handed over"
    fi
  done
}
