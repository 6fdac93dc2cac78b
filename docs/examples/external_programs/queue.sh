#!/bin/sh
# A queue with one server, 50 customers: queue.sh INPUT OUTPUT. Reads `name=value` lines, writes JSON.
set -eu
. "$1"
awk -v arrivals="$arrivals" -v service="$service" -v seed="$seed" 'BEGIN {
    srand(seed)
    for (n = 1; n <= 50; n++) {
        clock += -log(1 - rand()) / arrivals
        begins = clock > free ? clock : free
        waits += begins - clock
        free = begins - log(1 - rand()) / service
    }
    printf "{\"mean_wait\": %.17g, \"closing\": %.17g}\n", waits / 50, free
}' > "$2"
