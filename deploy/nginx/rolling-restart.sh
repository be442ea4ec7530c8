#!/bin/sh
# Restart the nodes behind an nginx one after another; no client notices.
#
#     RESTART='ssh "$1" systemctl restart app' rolling-restart.sh 10.0.0.11:8000 10.0.0.12:8000
#
# For new code no restart is needed: `serve reload` on each node does it, and nginx need not know. This is for what a
# reload cannot change. Open-source nginx does not ask the nodes how they are, so it has to be told: mark the node
# `down`, reload nginx, wait until the workers of nginx that still knew the node have gone, restart the node, take the
# mark away and reload nginx again.
#
# RESTART        command that restarts a node and returns when it serves again, as `systemctl restart` does with a unit
#                of Type=notify; run by sh with the node's address (without the port) as $1 and ADDRESS:PORT as $2
# UPSTREAM       file with the lines `server ADDRESS:PORT …;`    (/etc/nginx/app-upstream.conf)
# NGINX_COMMAND  nginx with its options                          (nginx)
# PIDFILE        nginx's pid file                                (/run/nginx.pid)
# PATIENCE       seconds that old workers of nginx may take: as long as a client may take to send the head of a request
#                (client_header_timeout). WebSockets and streams keep them longer; the node ends those when it stops,
#                so that they come again                         (60)
#
# Ends with status 1 at the first step that fails; the node that it was at then stays marked.
set -eu

: "${RESTART:?is the command that restarts a node}"
UPSTREAM=${UPSTREAM:-/etc/nginx/app-upstream.conf}
NGINX_COMMAND=${NGINX_COMMAND:-nginx}
PIDFILE=${PIDFILE:-/run/nginx.pid}
PATIENCE=${PATIENCE:-60}

say() { echo "$(date +%T) $*"; }

workers() { # nginx's worker processes (proc(5))
    cat "/proc/$(cat "$PIDFILE")/task/$(cat "$PIDFILE")/children"
}

all_gone() {
    for pid in $1; do
        [ ! -d "/proc/$pid" ] || return 1
    done
}

one_is_new() {
    for pid in $(workers); do
        case " $1 " in *" $pid "*) ;; *) return 0 ;; esac
    done
    return 1
}

wait_until() { # SECONDS CONDITION ARGUMENT
    tries=$(($1 * 10))
    until "$2" "$3"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

reload_nginx() { # sets `old` to the workers that were there before
    old=$(workers)
    $NGINX_COMMAND -s reload
    wait_until "$PATIENCE" one_is_new "$old" || { say "nginx has not reloaded: see its error log"; exit 1; }
}

for node in "$@"; do
    pattern=$(printf %s "$node" | sed 's/[.[]/\\&/g')
    grep -q "^[[:space:]]*server $pattern[ ;]" "$UPSTREAM" || { say "$UPSTREAM has no line for $node"; exit 1; }

    say "$node: down in nginx"
    sed -i "s/^\([[:space:]]*server $pattern\)\([ ;]\)/\1 down\2/" "$UPSTREAM"
    reload_nginx
    wait_until "$PATIENCE" all_gone "$old" || say "$node: nginx's old workers still have connections; going on"

    say "$node: restart"
    sh -c "$RESTART" restart "${node%:*}" "$node" || { say "$node has not come back; it stays down in nginx"; exit 1; }

    say "$node: up in nginx"
    sed -i "s/^\([[:space:]]*server $pattern\) down/\1/" "$UPSTREAM"
    reload_nginx
done
say "done"
