#!/usr/bin/env bash
# Step 4, for each todo machine: give it an identity of its own, out of band, and start its service: 04-provision-todo.sh todo0
set -euo pipefail
lab=$(dirname "${BASH_SOURCE[0]}")/lab
"$lab" mint "$@"
"$lab" start "$@"
