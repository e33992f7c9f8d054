"""virtio-vsock: streams between the guest and Unix sockets of the parent."""
