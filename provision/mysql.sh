#!/usr/bin/env bash
# mysql.sh: the database, MariaDB on Debian and MySQL 8 on Ubuntu. Only the former has been run.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
  local system server last
  system=$(. /etc/os-release && echo "$ID")
  case $system in
    debian) server=mariadb-server last=/etc/mysql/mariadb.conf.d/99-todo.cnf ;;
    ubuntu) server=mysql-server last=/etc/mysql/mysql.conf.d/99-todo.cnf ;;
    *) die "no database server is known for $system, only for debian and ubuntu" ;;
  esac
  begin
  install_tree
  # Before there is a server, so that none ever runs without it.
  link "$last" /etc/mysql/todo.cnf
  common_packages
  packages "$server"
  service mysql.service
  agent
  started mysql.service 300
  no_anonymous
  finish
}

# no_anonymous: an account without a name would match before others that have one.
no_anonymous() {
  local hosts host
  hosts=$(sql "SELECT Host FROM mysql.user WHERE User = ''")
  for host in $hosts; do
    sql "DROP USER ''@'$host'"
    changed "account ''@'$host' dropped"
  done
}

sql() { mysql --batch --skip-column-names --execute "$1"; }

main "$@"
