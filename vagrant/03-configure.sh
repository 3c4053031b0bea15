#!/usr/bin/env bash
# Step 3: give Vault the policies, the database engine and the identities' roles, and bring the database's schema up to date.
set -euo pipefail
lab=$(dirname "${BASH_SOURCE[0]}")/lab
"$lab" vault configure "$@"
"$lab" migrate
