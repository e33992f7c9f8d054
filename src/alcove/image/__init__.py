"""Enclave images: read, measured, described, signed and built (eif.md)."""
