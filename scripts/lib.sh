# shellcheck shell=bash
# What every script here shares. Sourced, never run.

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
  warn "$*"
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# elapsed SECONDS: 75 becomes 1m15s.
elapsed() {
  if (($1 < 60)); then printf '%ds' "$1"; else printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); fi
}

# watched LABEL HINT LOG COMMAND…: run COMMAND with its output in LOG and show that it is alive: a line that is rewritten
# on a terminal, a new line every 20 seconds elsewhere, nothing at all for a command that takes under 2 seconds. COMMAND gets a
# process group of its own, so that an interrupted script can end it together with its compilers. Returns COMMAND's status.
watched_pid=
watched() {
  local label=$1 hint=$2 log=$3 started=$SECONDS shown=-1 took status=0
  shift 3
  set -m
  "$@" </dev/null >"$log" 2>&1 &
  watched_pid=$!
  set +m
  while kill -0 "$watched_pid" 2>/dev/null; do
    took=$((SECONDS - started))
    if ((shown < 0 && took >= 2)); then
      shown=$took
      say "$label … ($hint)"
    elif ((shown >= 0)) && [ -t 1 ] && ((took > shown)); then
      shown=$took
      printf '\r\033[K  %s, %s' "$(elapsed "$took")" "$(progress "$log")"
    elif ((shown >= 0 && took - shown >= 20)); then
      shown=$took
      say "  $(elapsed "$took"), $(progress "$log")"
    fi
    sleep 0.2
  done
  wait "$watched_pid" || status=$?
  watched_pid=
  took=$((SECONDS - started))
  if [ -t 1 ] && ((shown >= 0)); then printf '\r\033[K'; fi
  if ((status != 0)); then
    warn "$label: ended with status $status after $(elapsed "$took"):"
    grep -v -e '^go: downloading' "$log" | tail -n 30 >&2 || true
  elif ((shown >= 0)); then
    say "$label: done in $(elapsed "$took")"
  fi
  return "$status"
}

# progress LOG: what `go build -v` has done so far, read from what it has printed.
progress() {
  local compiled fetched
  compiled=$(grep -c -v -e '^go: ' -e '^#' "$1" || true)
  fetched=$(grep -c '^go: downloading' "$1" || true)
  if ((compiled > 0)); then
    printf '%d packages compiled' "$compiled"
  elif ((fetched > 0)); then
    printf '%d modules fetched' "$fetched"
  else
    printf 'no package to compile so far'
  fi
}

# stop_watched ends the command that `watched` runs, if any, and returns when it is gone. SIGINT lets go remove its work
# directory; a command that ignores that for ten seconds is killed.
stop_watched() {
  local tries=0
  [ -n "$watched_pid" ] || return 0
  [ ! -t 1 ] || printf '\r\033[K'
  kill -INT -- "-$watched_pid" 2>/dev/null || true
  while kill -0 -- "-$watched_pid" 2>/dev/null && ((tries++ < 50)); do sleep 0.2; done
  kill -KILL -- "-$watched_pid" 2>/dev/null || true
  watched_pid=
}

# as_root COMMAND…: run COMMAND as root, through sudo if need be. WHY completes the sentence that asks for the password.
if [ -t 0 ] && { : </dev/tty; } 2>/dev/null; then someone_is_there=yes; else someone_is_there=no; fi
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif [ "$someone_is_there" = yes ]; then
    sudo -p "[sudo] password for %u (${WHY:-to go on}): " "$@"
  else
    sudo -n "$@"
  fi
}
may_be_root() {
  [ "$(id -u)" = 0 ] || { have sudo && { [ "$someone_is_there" = yes ] || sudo -n true 2>/dev/null; }; }
}

# newer_or_same HAVE WANT: whether version HAVE is at least WANT.
newer_or_same() { printf '%s\n%s\n' "$2" "$1" | sort -V -C; }
