"""TLS keys that a web server on the parent uses and nobody outside the enclave can read (acm.md)."""
