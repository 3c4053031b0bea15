#!/usr/bin/env bash
# vault.sh: a Vault server. It comes up sealed.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
  begin
  install_tree
  common_packages
  agent
  user vault
  service vault.service
  started vault.service
  finish
}

main "$@"
