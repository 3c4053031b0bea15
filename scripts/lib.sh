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
# process group of its own, so that an interrupted script can end it together with its compilers. Returns COMMAND's status. The
# script that calls this defines `progress LOG`, which says in a few words how far COMMAND is.
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

# become_root ARG…: run this script again as root, with these arguments and the variables named in PASS, unless it is root already.
become_root() {
  local name pass=()
  [ "$(id -u)" != 0 ] || return 0
  may_be_root || die "this needs root: run it as root, or as a user who may use sudo without a password"
  for name in ${PASS:-}; do
    [ -z "${!name+set}" ] || pass+=("$name=${!name}")
  done
  as_root env "${pass[@]}" "$BASH" "$0" "$@" || exit $?
  exit 0
}

# newer_or_same HAVE WANT: whether version HAVE is at least WANT.
newer_or_same() { printf '%s\n%s\n' "$2" "$1" | sort -V -C; }

# debian_packages PURPOSE NAME…: see that these packages of Debian are installed.
debian_packages() {
  local purpose=$1 name missing=()
  shift
  { have apt-get && have dpkg-query; } || die "$purpose works on Debian and its kin; here the equivalents of these packages are missing or unknown: $*"
  for name in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
  done
  ((${#missing[@]} == 0)) || install_package "${missing[@]}"
}

# install_package NAME…: through whatever this system has.
install_package() {
  WHY="to install $*"
  if have brew; then
    brew install "$@"
    return
  fi
  may_install "$@"
  say "installing $*"
  if have apt-get; then
    apt_install "$@"
  else
    # shellcheck disable=SC2046
    as_root $(install_command "$@") </dev/null
  fi
}

may_install() {
  may_be_root || die "missing: $*. This user is not root, and sudo is missing or asks for a password that nobody is here to type; let an administrator run
    $(install_command "$@")"
}

install_command() {
  if have apt-get; then
    printf 'apt-get install --no-install-recommends %s' "$*"
  elif have dnf; then
    printf 'dnf install -y %s' "$*"
  elif have zypper; then
    printf 'zypper --non-interactive install %s' "$*"
  elif have pacman; then
    printf 'pacman -S --noconfirm --needed %s' "$*"
  elif have apk; then
    printf 'apk add %s' "$*"
  else
    die "missing: $*. This system has none of apt-get, dnf, zypper, pacman, apk, brew: install it by hand"
  fi
}

# apt_install tries with the package lists as they are, and fetches them only if that does not do.
apt_install() {
  if ! apt-cache show "$@" >/dev/null 2>&1; then apt_update; fi
  apt_get install -y --no-install-recommends "$@" && return
  apt_update
  apt_get install -y --no-install-recommends "$@" || die "apt-get could not install $*; the reason is above"
}
apt_update() {
  say "fetching the package lists"
  apt_get update || die "apt-get could not fetch the package lists; the reason is above"
}

# apt_get ARG…: apt-get without questions. Another program may hold its lock, above all on a machine that has just booted
# and updates itself; that is waited for, ten minutes long. An installation that was interrupted earlier is completed first.
# What it says is kept in a file that has no name any more, so that no interruption leaves it behind.
apt_get() {
  local started=$SECONDS status completed=no log
  log=$(mktemp)
  exec 8<>"$log"
  rm -f "$log"
  log=/dev/fd/8
  while :; do
    status=0
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 LC_ALL=C \
      apt-get -o Dpkg::Use-Pty=0 "$@" </dev/null 2>&1 | tee "$log" | quiet || status=$?
    if ((status != 0)) && grep -q -E 'Could not get lock|Unable to (acquire|lock)' "$log" && ((SECONDS - started < 600)); then
      say "another program holds the package manager's lock; waiting for it ($(elapsed $((SECONDS - started))))"
      sleep 5
    elif ((status != 0)) && grep -q 'dpkg --configure -a' "$log" && [ "$completed" = no ]; then
      say "an earlier installation was interrupted; completing it (dpkg --configure -a)"
      completed=yes
      as_root env DEBIAN_FRONTEND=noninteractive dpkg --configure -a </dev/null || break
    else
      break
    fi
  done
  # What kept us from running apt-get at all, such as a wrong password, is not among what `quiet` lets through.
  if ((status != 0)); then tail -n 5 "$log" >&2; fi
  exec 8>&-
  return "$status"
}

# quiet lets through what shows progress or a problem.
quiet() {
  grep --line-buffered -E '^(Get:|Fetched |Unpacking|Setting up|E:|W:|Err:|dpkg: error)' || true
}
