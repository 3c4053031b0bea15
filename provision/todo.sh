#!/usr/bin/env bash
# todo.sh: one instance of the todo service. It starts once somebody has brought the machine its identity.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
  begin
  install_tree
  common_packages
  agent
  user todo
  place_for_identity
  if [ -e /etc/todo/todo.env ] && [ -e /etc/todo/secret-id ]; then
    service todo.service
    started todo.service
  else
    enabled todo.service
    settled todo.service
    say "  todo.service waits for the machine's identity"
  fi
  finish
}

place_for_identity() {
  [ "$(stat -c '%a %u %g' /etc/todo 2>/dev/null)" != "700 0 0" ] || return 0
  install -d -m 700 -o root -g root /etc/todo
  changed "/etc/todo changed"
}

main "$@"
