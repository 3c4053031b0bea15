#!/usr/bin/env bash
# Step 2: unseal every Vault, or the one that is named: 02-unseal.sh vault1. A Vault comes back sealed from each restart.
exec "$(dirname "${BASH_SOURCE[0]}")/lab" vault unseal "$@"
