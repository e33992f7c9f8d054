"""The Nitro Security Module: its messages, its registers and its virtio queue."""
