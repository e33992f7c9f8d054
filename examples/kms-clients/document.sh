#!/usr/bin/sh
# An attestation document, in base64, for a program that can make an HTTP request and no more.
# The egress proxy in the environment is for what is outside (-Y off).
#
#     document.sh NONCE-IN-HEX
set -eu -o pipefail
busybox wget -Y off -q -O - "http://127.0.0.1:4567/v1/attestation?nonce=$1" | busybox base64 | busybox tr -d '\n'
