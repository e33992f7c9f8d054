"""Secrets for the proven: a key management service that speaks AWS KMS's protocol and reads attestation documents."""
