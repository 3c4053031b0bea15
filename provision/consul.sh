#!/usr/bin/env bash
# consul.sh: a Consul server. It differs from any other machine's agent in its configuration only.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
  begin
  install_tree
  common_packages
  agent
  finish
}

main "$@"
