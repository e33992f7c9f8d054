"""What the guest sees: NSM and vsock, served to QEMU over vhost-user, outside QEMU."""
