"""Servers that run beside an application in its enclave, for programs that do not use the SDK."""
