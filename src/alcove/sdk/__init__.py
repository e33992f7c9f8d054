"""For authors of enclave applications: the NSM, KMS with attestation, vsock streams, entropy and time (sdk.md)."""
