"""The joiner: an image, a machine, its devices and its proof become a running enclave."""
