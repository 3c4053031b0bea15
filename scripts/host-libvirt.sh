# shellcheck shell=bash
# scripts/host for libvirt. Sourced by it, never run.
# shellcheck disable=SC2154 # $found and $NET come from there.

images=/var/lib/libvirt/images

libvirt_up() {
  scripts/need libvirt 9>&-
  if systemd_runs; then
    systemctl is-active -q libvirtd.socket || systemctl start libvirtd.socket
    say "libvirtd: run by systemd, used as it is"
  else
    remember_both
    daemons_up
    pool_up
  fi
  libvirt_answers || die "libvirtd does not answer: virsh -c qemu:///system version"
  say "this host is ready for machines on libvirt"
}

libvirt_down() {
  local machines
  if [ ! -e "$found" ]; then
    restore_both
    say "nothing was started here for libvirt: nothing to undo"
    return
  fi
  machines=$(! libvirt_answers || virsh_ list --name | xargs)
  [ -z "$machines" ] || die "machines run: $machines. First vagrant halt or vagrant destroy (or virsh destroy NAME); nothing was changed"
  # Networks outlive libvirtd, and only libvirtd knows how to end them.
  daemons_up
  networks_down
  pool_down
  daemons_down
  restore_both
  say "this host is as it was; the packages stay"
}

virsh_() { virsh -q -c qemu:///system "$@"; }
libvirt_answers() { have virsh && virsh_ version >/dev/null 2>&1; }

# daemons_up starts libvirtd with additions to qemu.conf that lie over the file for it alone, in a mount namespace of its own:
# without systemd nobody sets up the users, profiles and control groups that it would put its machines into.
daemons_up() {
  if libvirt_answers; then
    [ -e "$found/daemons" ] || say "libvirtd: runs, used as it is"
    return 0
  fi
  say "libvirtd: starting virtlogd and libvirtd"
  remember daemons ours
  {
    cat /etc/libvirt/qemu.conf
    printf '\nuser = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = [ ]\nremember_owner = 0\n'
  } >"$found/qemu.conf"
  daemon virtlogd >/dev/null || virtlogd -d 9>&-
  # shellcheck disable=SC2016 # the inner shell expands these.
  daemon libvirtd >/dev/null ||
    unshare --mount --propagation slave sh -c 'mount --bind "$1" /etc/libvirt/qemu.conf && exec libvirtd -d' sh "$found/qemu.conf" 9>&-
  waited 30 libvirt_answers || die "libvirtd has started, but does not answer; its words are in the system's log"
}

# daemon NAME prints the process id of this libvirt daemon, if it runs.
daemon() {
  local pid
  pid=$(cat "/run/$1.pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] && echo "$pid"
}

daemons_down() {
  local name pid
  [ -e "$found/daemons" ] || return 0
  say "libvirtd: stopping libvirtd and virtlogd"
  for name in libvirtd virtlogd; do
    pid=$(daemon $name) || continue
    kill "$pid"
    waited 30 gone "$pid" || kill -KILL "$pid"
    rm -f "/run/$name.pid"
  done
  rm -rf /run/libvirt
  # libvirtd makes these where it finds none.
  rmdir /etc/libvirt/secrets /etc/libvirt/storage 2>/dev/null || true
}
gone() { [ ! -e "/proc/$1/exe" ]; }

# waited SECONDS COMMAND…: whether COMMAND succeeds within that time.
waited() {
  local until=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < until)) || return 1
    sleep 0.2
  done
}

pool_up() {
  if virsh_ pool-info default >/dev/null 2>&1; then
    virsh_ pool-start default >/dev/null 2>&1 || true
    return
  fi
  say "pool: defining \"default\" in $images"
  remember pool ours
  virsh_ pool-define-as default dir --target $images >/dev/null
  virsh_ pool-start default --build >/dev/null
}

# pool_down also removes the copies of our box from the pool, unless a machine's disk is there that may be based on one.
pool_down() {
  local others
  others=$(find $images -mindepth 1 -not -name 'todo-lab-VAGRANTSLASH-*_vagrant_box_image_*' -print -quit)
  if [ -n "$others" ]; then
    say "pool: other disks are in $images, so the box's stays"
  elif [ -n "$(ls $images)" ]; then
    say "pool: removing the box's disk from $images"
    rm -f $images/todo-lab-VAGRANTSLASH-*
  fi
  if [ -e "$found/pool" ] && virsh_ pool-info default >/dev/null 2>&1; then
    say "pool: removing \"default\""
    virsh_ pool-destroy default >/dev/null 2>&1 || true
    virsh_ pool-undefine default >/dev/null
  fi
}

networks_down() {
  local name command table
  [ -e "$found/daemons" ] || return 0
  for name in $(virsh_ net-list --name); do
    say "network: ending $name"
    virsh_ net-destroy "$name" >/dev/null
  done
  for command in iptables ip6tables; do
    for table in filter nat mangle; do drop_chains $command $table 'LIBVIRT_[A-Z]+'; done
  done
}

libvirt_status() {
  if ! libvirt_answers; then
    say "libvirtd: $(have libvirtd && echo "does not answer" || echo "is not installed")"
    return 1
  fi
  say "libvirtd: answers$(pid=$(daemon libvirtd) && echo ", process $pid")$([ -e "$found/daemons" ] || echo ", not started by scripts/host")"
  say "pool: $(virsh_ pool-list --name | xargs)"
  say "networks: $(virsh_ net-list --name | xargs)"
  say "machines that run: $(virsh_ list --name | xargs)"
}
