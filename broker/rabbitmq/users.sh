#!/bin/sh
# Prints who may do what at RabbitMQ, for the ids named: a device reads and writes only what is its
# own, in any fleet, as fleet.acl says it for mosquitto.
#
#   ./users.sh coordinator cam-01 cam-02 | sudo rabbitmqctl import_definitions
#
# The users have no password, so a certificate with that name is the one way in. Importing adds to
# what is there. RabbitMQ writes "." for "/" in topics.
set -eu

if [ $# -eq 0 ]; then
    echo "usage: users.sh ID..." >&2
    exit 2
fi
for id in "$@"; do
    case $id in
    *[!a-z0-9-]*|'')
        echo "users.sh: '$id' is no id: expected a to z, 0 to 9 and -" >&2
        exit 2
        ;;
    esac
done

# each FORMAT ID...: the format for every id, with commas between.
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

fleet='^fedclip[.]v1[.][a-z0-9-]+[.]'
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
        write="(coord[.]state|round|model|dev[.][a-z0-9-]+[.]down)"
        read="(coord[.]state|round|model|dev[.]([a-z0-9-]+|[*])[.](state|up))"
    else
        write="dev[.]$id[.](state|up)"
        read="(coord[.]state|round|model|dev[.]$id[.]down)"
    fi
    printf '%s{"user":"%s","vhost":"/","exchange":"amq.topic","write":"%s","read":"%s"}' \
        "$between" "$id" "$fleet$write\$" "$fleet$read\$"
    between=,
done
# A subscription's queue lies on one node. Were that killed, the client could not subscribe at
# another before it is back, under its client id; with a mirror it can.
printf '],"policies":[{"vhost":"/","name":"subscriptions","apply-to":"queues","priority":0,'
printf '"pattern":"^mqtt-subscription-","definition":{"ha-mode":"exactly","ha-params":2}}]}\n'
