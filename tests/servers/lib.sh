# The functions that the scripts for private servers share; to be sourced.
# shellcheck shell=bash

# A port on which no program listens, below the range the system hands out by itself.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# wait_until SECONDS COMMAND…: tries until it succeeds.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

# Debian keeps the real script out of PATH; the one in PATH needs a user of its own.
rabbitmq_sbin() {
    local candidate
    for candidate in /usr/lib/rabbitmq/bin /opt/homebrew/opt/rabbitmq/sbin /usr/local/opt/rabbitmq/sbin; do
        if [ -x "$candidate/rabbitmq-server" ]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}
