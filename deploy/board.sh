# A clean Debian, booted with systemd in a container that shares this machine's network: a board, for
# the scripts beside this one. Needs root, mmdebstrap and systemd-nspawn.

board=
# Process 1 of the board, as this machine numbers it.
init=

# board_debian TARGET [ARCHITECTURE [PACKAGE…]]: the Debian, in this folder or archive, of this machine's
# or another architecture, with these packages.
board_debian() {
    local target=$1 arch=${2:-$(dpkg --print-architecture)}
    # /usr is one before anything is unpacked: later it takes a Perl, for long where it is emulated.
    mmdebstrap --quiet --variant=minbase --architectures="$arch" \
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
        --include="$(IFS=,; echo "usr-is-merged,systemd,dbus${3:+,${*:3}}")" bookworm "$target"
}

# board_boot ROOT: boots the root file system in this folder.
board_boot() {
    systemd-nspawn --quiet --directory "$1" --boot --register=no --keep-unit --machine=board \
        --link-journal=no --resolv-conf=off < /dev/null > "$1.console" 2>&1 &
    board=$!
    local state= i
    for ((i = 0; i < 600; i++)); do
        init=$(pgrep --parent "$board" || true)
        [[ -n $init ]] && state=$(on_board systemctl is-system-running 2> /dev/null || true)
        [[ $state == running || $state == degraded ]] && return
        kill -0 "$board" 2> /dev/null || break
        sleep 0.1
    done
    tail -20 "$1.console" >&2
    echo "the board does not boot" >&2
    return 1
}

# on_board COMMAND…: runs it there, as root.
on_board() { nsenter --target "$init" --all -- "$@"; }

board_halt() {
    [[ -n $board ]] || return 0
    kill "$board" 2> /dev/null || true
    wait "$board" || true
    board=
}
