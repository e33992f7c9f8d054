#!/usr/bin/env bash
# Every operation of the KMS with the AWS CLI as it is. The endpoint, Region and credentials come from the CLI's usual
# places; AWS names another `aws`, TOUR_REGION a second Region of the service, TOUR_ROLE a role that the caller may take on.
set -euo pipefail

AWS=${AWS:-aws} TOUR_REGION=${TOUR_REGION:-eu-west-1} TOUR_ROLE=${TOUR_ROLE:-arn:aws:iam::111122223333:role/tourist}
export AWS_MAX_ATTEMPTS=1 AWS_PAGER=
umask 077
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cd "$work"

kms() { "$AWS" kms "$@" --output text; }
there() { kms "$@" --region "$TOUR_REGION"; }
new() { kms create-key --description "a key of the tour" --query KeyMetadata.KeyId "$@"; }
chapter() { printf '%s\n' "$1"; }
die() { printf 'tour: error: %s\n' "$1" >&2; exit 1; }
refused() { # CODE COMMAND…: the command must fail with this code
  local code=$1 said
  shift
  if said=$("$@" 2>&1 >/dev/null); then die "$code was to be expected: $*"; fi
  case $said in *"($code)"*) ;; *) die "$said" ;; esac
}

chapter "who am I, and who can I be"
me=$("$AWS" sts get-caller-identity --query Arn --output text)
"$AWS" sts assume-role --role-arn "$TOUR_ROLE" --role-session-name tour --output text >/dev/null

chapter "encryption"
printf secret >plain
key=$(new) rsa=$(new --key-spec RSA_2048 --key-usage ENCRYPT_DECRYPT)
kms encrypt --key-id "$key" --plaintext fileb://plain --encryption-context app=tour --query CiphertextBlob | base64 -d >sealed
kms decrypt --ciphertext-blob fileb://sealed --encryption-context app=tour --query Plaintext | base64 -d | cmp - plain
refused InvalidCiphertextException kms decrypt --ciphertext-blob fileb://sealed
kms re-encrypt --ciphertext-blob fileb://sealed --source-encryption-context app=tour --destination-key-id "$rsa" \
  --destination-encryption-algorithm RSAES_OAEP_SHA_256 --query CiphertextBlob | base64 -d >moved
kms decrypt --ciphertext-blob fileb://moved --key-id "$rsa" --encryption-algorithm RSAES_OAEP_SHA_256 --query Plaintext |
  base64 -d | cmp - plain
kms get-key-last-usage --key-id "$key" >/dev/null

chapter "data keys"
kms generate-data-key --key-id "$key" --key-spec AES_256 --query CiphertextBlob | base64 -d >data
[ "$(kms decrypt --ciphertext-blob fileb://data --query Plaintext | base64 -d | wc -c)" = 32 ] || die "a data key has 32 bytes"
kms generate-data-key-without-plaintext --key-id "$key" --number-of-bytes 64 >/dev/null
kms generate-data-key-pair --key-id "$key" --key-pair-spec ECC_NIST_P256 --query PublicKey | base64 -d |
  openssl pkey -pubin -inform DER -noout
kms generate-data-key-pair-without-plaintext --key-id "$key" --key-pair-spec RSA_2048 >/dev/null
[ "$(kms generate-random --number-of-bytes 32 --query Plaintext | base64 -d | wc -c)" = 32 ] || die "32 random bytes"

chapter "signatures"
signer=$(new --key-spec ECC_NIST_P256 --key-usage SIGN_VERIFY)
sign=(--key-id "$signer" --message fileb://plain --signing-algorithm ECDSA_SHA_256)
kms sign "${sign[@]}" --query Signature | base64 -d >signature
kms verify "${sign[@]}" --signature fileb://signature >/dev/null
kms get-public-key --key-id "$signer" --query PublicKey | base64 -d >signer.der
openssl dgst -sha256 -verify <(openssl pkey -pubin -inform DER -in signer.der) -signature signature plain >/dev/null

chapter "MACs"
hmac=(--key-id "$(new --key-spec HMAC_256 --key-usage GENERATE_VERIFY_MAC)" --message fileb://plain --mac-algorithm HMAC_SHA_256)
kms generate-mac "${hmac[@]}" --query Mac | base64 -d >mac
kms verify-mac "${hmac[@]}" --mac fileb://mac >/dev/null

chapter "shared secrets"
agreeing=$(new --key-spec ECC_NIST_P256 --key-usage KEY_AGREEMENT)
openssl ecparam -name prime256v1 -genkey -noout -out mine.pem
openssl pkey -in mine.pem -pubout -outform DER -out mine.der
kms derive-shared-secret --key-id "$agreeing" --key-agreement-algorithm ECDH --public-key fileb://mine.der \
  --query SharedSecret | base64 -d >derived
kms get-public-key --key-id "$agreeing" --query PublicKey | base64 -d >theirs.der
openssl pkeyutl -derive -inkey mine.pem -peerkey theirs.der -peerform DER | cmp - derived
if "$AWS" kms encapsulate --generate-cli-skeleton >/dev/null 2>&1; then # newer than some
  kem=$(new --key-spec ML_KEM_768 --key-usage ENCAPSULATE_DECAPSULATE)
  kms encapsulate --key-id "$kem" --encapsulation-algorithm ML_KEM --query SharedSecretCiphertextBlob | base64 -d >kem
  kms decapsulate --key-id "$kem" --encapsulation-algorithm ML_KEM --shared-secret-ciphertext-blob fileb://kem >/dev/null
fi

chapter "names"
alias=alias/tour-$$-$RANDOM
kms create-alias --alias-name "$alias" --target-key-id "$key"
kms update-alias --alias-name "$alias" --target-key-id "$(new)"
kms describe-key --key-id "$alias" >/dev/null
kms list-aliases --query "Aliases[].AliasName" | grep "$alias" >/dev/null
kms delete-alias --alias-name "$alias"
kms tag-resource --key-id "$key" --tags TagKey=room,TagValue=1 TagKey=door,TagValue=2
kms untag-resource --key-id "$key" --tag-keys door
[ "$(kms list-resource-tags --key-id "$key" --query 'Tags[].TagKey')" = room ] || die "tags come and go"
kms update-key-description --key-id "$key" --description "described anew"
kms list-keys --page-size 3 --query "Keys[].KeyId" | grep "$key" >/dev/null

chapter "policies"
kms get-key-policy --key-id "$key" --query Policy >policy
kms put-key-policy --key-id "$key" --policy file://policy
kms list-key-policies --key-id "$key" >/dev/null
refused MalformedPolicyDocumentException kms put-key-policy --key-id "$key" --policy '{"Version": "2012-10-17", "Statement": []}'

chapter "grants"
grant() { kms create-grant --key-id "$key" --grantee-principal "$TOUR_ROLE" --retiring-principal "$me" --operations Decrypt "$@"; }
kms retire-grant --grant-token "$(grant --query GrantToken)"
kms revoke-grant --key-id "$key" --grant-id "$(grant --query GrantId)"
kms list-retirable-grants --retiring-principal "$me" >/dev/null
[ "$(kms list-grants --key-id "$key" --query 'length(Grants)')" = 0 ] || die "grants end"

chapter "imports"
external=$(new --origin EXTERNAL)
kms get-parameters-for-import --key-id "$external" --wrapping-algorithm RSAES_OAEP_SHA_256 --wrapping-key-spec RSA_2048 \
  --query "[PublicKey, ImportToken]" >parameters
cut -f1 parameters | base64 -d >wrapping.der
cut -f2 parameters | base64 -d >token
openssl rand 32 | openssl pkeyutl -encrypt -pubin -keyform DER -inkey wrapping.der -pkeyopt rsa_padding_mode:oaep \
  -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256 >wrapped
kms import-key-material --key-id "$external" --import-token fileb://token --encrypted-key-material fileb://wrapped \
  --expiration-model KEY_MATERIAL_DOES_NOT_EXPIRE >/dev/null
kms delete-imported-key-material --key-id "$external" >/dev/null
refused KMSInvalidStateException kms encrypt --key-id "$external" --plaintext fileb://plain

chapter "rotation"
kms enable-key-rotation --key-id "$key" --rotation-period-in-days 90
kms get-key-rotation-status --key-id "$key" >/dev/null
kms rotate-key-on-demand --key-id "$key" >/dev/null
[ "$(kms list-key-rotations --key-id "$key" --query 'length(Rotations)')" = 1 ] || die "a rotation is listed"
kms disable-key-rotation --key-id "$key"
kms decrypt --ciphertext-blob fileb://data >/dev/null

chapter "Regions"
shared=$(new --multi-region)
kms replicate-key --key-id "$shared" --replica-region "$TOUR_REGION" >/dev/null
here=$(kms describe-key --key-id "$shared" --query KeyMetadata.MultiRegionConfiguration.PrimaryKey.Region)
kms update-primary-region --key-id "$shared" --primary-region "$TOUR_REGION"
there update-primary-region --key-id "$shared" --primary-region "$here"
there schedule-key-deletion --key-id "$shared" --pending-window-in-days 7 >/dev/null

chapter "states"
kms disable-key --key-id "$key"
refused DisabledException kms encrypt --key-id "$key" --plaintext fileb://plain
kms enable-key --key-id "$key"
kms schedule-key-deletion --key-id "$key" --pending-window-in-days 7 >/dev/null
kms cancel-key-deletion --key-id "$key" >/dev/null
[ "$(kms describe-key --key-id "$key" --query KeyMetadata.KeyState)" = Disabled ] || die "a key comes back disabled"

chapter "what is not served"
refused UnsupportedOperationException kms create-custom-key-store --custom-key-store-name tour
refused UnsupportedOperationException kms describe-custom-key-stores
for command in connect delete disconnect update; do
  refused UnsupportedOperationException kms "$command-custom-key-store" --custom-key-store-id cks-1
done
chapter "the end: every answer was as it should be"
