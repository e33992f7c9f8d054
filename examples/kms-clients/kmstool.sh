#!/usr/bin/sh
# AWS's kmstool_enclave_cli as the samples use it: its output is cut at the colon.
#
#     kmstool.sh KEY
#
# Credentials come from the environment, where ps does not show them.
set -eu
key=$1
made=$(kmstool_enclave_cli genkey --key-id "$key" --key-spec AES-256)
ciphertext=$(echo "$made" | busybox sed -n 's/^CIPHERTEXT: //p')
plaintext=$(echo "$made" | busybox sed -n 's/^PLAINTEXT: //p')
again=$(kmstool_enclave_cli decrypt --ciphertext "$ciphertext" | busybox sed -n 's/^PLAINTEXT: //p')
[ "$plaintext" = "$again" ] || { echo "the ciphertext opens to another key" >&2; exit 1; }
random=$(kmstool_enclave_cli genrandom --length 32 | busybox sed -n 's/^PLAINTEXT: //p')
sha256=$(echo "$plaintext" | busybox base64 -d | busybox sha256sum | busybox cut -d' ' -f1)
echo "{\"sha256\": \"$sha256\", \"ciphertext\": \"$ciphertext\", \"random_bytes\": $(echo "$random" | busybox base64 -d | busybox wc -c)}"
