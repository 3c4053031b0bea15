#!/usr/bin/env bash
# Step 1: make Vault's keys, five shares of which three unseal it, and the root token. They stay here, with the operator.
exec "$(dirname "${BASH_SOURCE[0]}")/lab" vault init "$@"
