# shellcheck shell=bash
# scripts/host for LXC. Sourced by it, never run.
# shellcheck disable=SC2154 # $found and $NET come from there.

management=lxcbr0
private=todolab0
private_mac=02:74:6f:64:6f:00
chain=todo-lab
lxc_net=/usr/libexec/lxc/lxc-net

lxc_up() {
  local other
  other=$(recall net)
  [ -z "$other" ] || [ "$other" = "$NET" ] || die "the private network is up as $other.0/24, not as $NET.0/24: run scripts/host lxc down first"
  check_collision
  scripts/need lxc 9>&-
  remember_both
  remember net "$NET"
  management_up
  private_up
  rules_up
  say "this host is ready for machines on LXC"
}

lxc_down() {
  local net
  refuse_while_used
  net=$(recall net)
  rules_down
  private_down "${net:-$NET}"
  management_down
  locks_down
  restore_both
  say "this host is as it was; the packages stay"
}

# check_collision: another interface in the private network would take part in the machines' traffic, or lose its own.
check_collision() {
  local taken
  taken=$(ip -4 -o addr show | awk -v net="$NET." -v us=$private '$2 != us && index($4, net) == 1 {print $2 " has " $4; exit}')
  [ -z "$taken" ] || die "$NET.0/24 is in use here: $taken. Choose another: NET=192.168.57 scripts/host lxc up"
}

# management_up starts lxc-net as it is configured, but without asking around before each lease, which costs three seconds.
# Its configuration is the administrator's: for this one program another file lies over it, in a mount namespace of its own.
management_up() {
  if management_works; then
    say "$management is up: used as it is"
    return
  fi
  remember lxc_net ours
  if systemd_runs; then
    say "$management: starting lxc-net.service"
    systemctl start lxc-net.service
  else
    say "$management: starting lxc-net"
    lxc_net_stop
    { cat /etc/default/lxc-net 2>/dev/null || true; printf '\nUSE_LXC_BRIDGE="true"\nLXC_DHCP_PING="false"\n'; } >"$found/lxc-net"
    # shellcheck disable=SC2016 # the inner shell expands these.
    unshare --mount sh -c 'mount --bind "$1" /etc/default/lxc-net && exec "$2" start' sh "$found/lxc-net" "$lxc_net" 9>&-
  fi
  management_works || die "lxc-net has started, but $management is not up with its DHCP server"
}

management_works() { is_up $management && [ -e /run/lxc/network_up ] && dhcp_server >/dev/null; }

# dhcp_server prints the process id of lxc-net's dnsmasq, if it runs.
dhcp_server() {
  local pid
  pid=$(cat /run/lxc/dnsmasq.pid 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dnsmasq ] && echo "$pid"
}

management_down() {
  if [ "$(recall lxc_net)" != ours ]; then
    if is_up $management; then say "$management was there before: left alone"; fi
    return 0
  fi
  if systemd_runs; then
    say "$management: stopping lxc-net.service"
    systemctl stop lxc-net.service
  elif is_up $management || [ -e /run/lxc/network_up ] || dhcp_server >/dev/null; then
    say "$management: stopping lxc-net"
    lxc_net_stop
  fi
  rm -f /var/lib/misc/dnsmasq.$management.leases
  ! is_up $management || die "$management is still there"
}

# locks_down removes the locks that lxc's tools make for every machine they look at. Without any that runs, nobody holds one.
locks_down() {
  if is_up $management || { have lxc-ls && [ -n "$(lxc-ls --running)" ]; }; then return; fi
  rm -rf /run/lxc/lock
  rmdir /run/lxc 2>/dev/null || true
}

# lxc_net_stop stops what is there of lxc-net. It kills by a number in a file, which must be its own server's.
lxc_net_stop() {
  dhcp_server >/dev/null || rm -f /run/lxc/dnsmasq.pid
  # What an interrupted start has not made yet cannot be removed, and that it says at length.
  if is_up $management; then
    mkdir -p /run/lxc
    touch /run/lxc/network_up
    "$lxc_net" stop >/dev/null 2>&1 || true
  fi
  rm -f /run/lxc/network_up
}

private_up() {
  if ! is_up $private; then
    say "$private: making the bridge"
    ip link add $private address $private_mac type bridge || die "this kernel makes no bridge; on a distribution's kernel: modprobe bridge"
  fi
  if ! private_works; then
    say "$private: this host is $NET.1 on it"
    ip addr replace "$NET.1/24" dev $private
    ip link set $private up
  fi
  if ! blackhole "$NET" | grep -q .; then
    say "route: what is for $NET.0/24 and finds no bridge is dropped"
    ip route replace blackhole "$NET.0/24" metric 4096
  fi
}

private_works() { [ -n "$(ip -4 -o addr show dev $private up to "$NET.1/32" 2>/dev/null)" ]; }

private_down() {
  if is_up $private; then
    say "$private: removing the bridge"
    ip link delete $private
  fi
  if blackhole "$1" | grep -q .; then
    say "route: removing the blackhole of $1.0/24"
    ip route delete blackhole "$1.0/24" metric 4096
  fi
}

blackhole() { ip -4 route show type blackhole "$1.0/24" | grep 'metric 4096' || true; }

# rules_up: a firewall or Docker may forward nothing by default; these come first and concern only our two bridges.
rules_up() {
  if rules_there; then return; fi
  say "iptables: letting $private and $management forward"
  iptables -w -N $chain 2>/dev/null || iptables -w -F $chain
  iptables -w -A $chain -i $private -o $private -j ACCEPT
  iptables -w -A $chain -i $management -j ACCEPT
  iptables -w -A $chain -o $management -j ACCEPT
  iptables -w -C FORWARD -j $chain 2>/dev/null || iptables -w -I FORWARD -j $chain
}

rules_there() {
  iptables -w -C FORWARD -j $chain 2>/dev/null && iptables -w -C $chain -o $management -j ACCEPT 2>/dev/null
}

rules_down() {
  if ! have iptables || [ -z "$(chains iptables filter $chain)" ]; then return 0; fi
  say "iptables: removing the rules"
  drop_chains iptables filter $chain
}

# refuse_while_used: removing a bridge would cut running machines off for good.
refuse_while_used() {
  local users=() name ours=no
  [ "$(recall lxc_net)" != ours ] || ours=yes
  for name in $(have lxc-ls && lxc-ls --running -1); do
    if uses "$name" $private || { [ $ours = yes ] && uses "$name" $management; }; then users+=("$name"); fi
  done
  if ((${#users[@]} > 0)); then
    die "machines that run use these networks: ${users[*]}. First vagrant halt or vagrant destroy (or lxc-stop -n NAME); nothing was changed"
  fi
}

# uses NAME BRIDGE: whether the container NAME has an interface on BRIDGE.
uses() { grep -q -E "^lxc\.net\.[0-9]+\.link[ =]+$2\$" "$(lxc-config lxc.lxcpath)/$1/config"; }

lxc_status() {
  local complete=0 pid
  NET=$(recall net | grep . || echo "$NET")
  if management_works && pid=$(dhcp_server); then
    say "$management: up, $(address $management), DHCP by process $pid$([ "$(recall lxc_net)" = ours ] || echo ", not started by scripts/host")"
  else
    say "$management: down"
    complete=1
  fi
  if private_works; then say "$private: up, $(address $private)"; else say "$private: down" && complete=1; fi
  if blackhole "$NET" | grep -q .; then say "route: there"; else say "route: missing" && complete=1; fi
  if have iptables && rules_there; then say "rules: there"; else say "rules: missing" && complete=1; fi
  if have lxc-ls; then say "machines that run: $(lxc-ls --running | xargs)"; else say "lxc is not installed" && complete=1; fi
  return $complete
}
address() { ip -4 -o addr show dev "$1" | awk '{print $4; exit}'; }
