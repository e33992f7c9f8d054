#!/bin/busybox sh
# Says hello every second, on the console of an enclave in debug mode.
count=1
while true; do
    printf '[%4d] %s\n' "$count" "$HELLO"
    count=$((count + 1))
    /bin/busybox sleep 1
done
