#!/usr/bin/env bash
# The board: how every machine is. status.sh --watch shows it again and again.
exec "$(dirname "${BASH_SOURCE[0]}")/lab" status "$@"
