#!/bin/sh
# Prints RabbitMQ users and permissions for the given ids. A device may read and write only its own
# topics, in this fleet; fleet.acl contains the same rules for mosquitto.
#
#   ./users.sh lab coordinator cam-01 cam-02 | sudo rabbitmqctl import_definitions
#
# The users have no password, so they can only log in with a certificate of that name. An import keeps
# the users that exist already. RabbitMQ writes "." instead of "/" in topics.
set -eu

if [ $# -lt 2 ]; then
    echo "usage: users.sh FLEET ID..." >&2
    exit 2
fi
for id in "$@"; do
    case $id in
    *[!a-z0-9-]*|'')
        echo "users.sh: '$id' is not an id; an id consists of a to z, 0 to 9 and -" >&2
        exit 2
        ;;
    esac
done
fleet=$1
shift

# each FORMAT ID...: prints the format for every id, separated by commas.
each() {
    format=$1 between=
    shift
    for id in "$@"; do
        printf '%s' "$between"
        # shellcheck disable=SC2059 # the formats are below
        printf "$format" "$id"
        between=,
    done
}

printf '{"vhosts":[{"name":"/"}],"users":['
each '{"name":"%s","password_hash":"","hashing_algorithm":"rabbit_password_hashing_sha256","tags":""}' "$@"
printf '],"permissions":['
# The queue of a subscription; its name ends with a client id that nobody else knows.
queue='^mqtt-subscription-.*$' both='^(amq[.]topic|mqtt-subscription-.*)$'
each '{"user":"%s","vhost":"/","configure":"'"$queue"'","write":"'"$both"'","read":"'"$both"'"}' "$@"
printf '],"topic_permissions":['
between=
for id in "$@"; do
    if [ "$id" = coordinator ]; then
        # "*" is the wildcard of its own subscriptions.
        write="coord[.]state|manifest|model|blob[.][0-9a-f]+|dev[.][a-z0-9-]+[.]down"
        read="coord[.]state|manifest|model|blob[.][0-9a-f]+|dev[.]([a-z0-9-]+|[*])[.](state|up)"
        # Parties of the earlier protocol, so that they are refused in words.
        old_write="dev[.][a-z0-9-]+[.]down"
        old_read="coord[.]state|round|model|dev[.]([a-z0-9-]+|[*])[.]up"
    else
        write="dev[.]$id[.](state|up)"
        read="coord[.]state|manifest|model|blob[.][0-9a-f]+|dev[.]$id[.]down"
        old_write="dev[.]$id[.](state|up)"
        old_read="coord[.]state|round|model|dev[.]$id[.]down"
    fi
    printf '%s{"user":"%s","vhost":"/","exchange":"amq.topic","write":"%s","read":"%s"}' \
        "$between" "$id" \
        "^fedclip[.](v2[.]$fleet[.]($write)|v1[.]$fleet[.]($old_write))\$" \
        "^fedclip[.](v2[.]$fleet[.]($read)|v1[.]$fleet[.]($old_read))\$"
    between=,
done
# The queue of a subscription is on one node. If that node is killed, the client cannot subscribe at
# another node until the first is back, unless the queue has a mirror.
printf '],"policies":[{"vhost":"/","name":"subscriptions","apply-to":"queues","priority":0,'
printf '"pattern":"^mqtt-subscription-","definition":{"ha-mode":"exactly","ha-params":2}}]}\n'
