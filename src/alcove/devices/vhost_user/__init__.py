"""The vhost-user protocol: how QEMU hands a device's queues to another process."""
