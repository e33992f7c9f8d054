"""A virtual machine to boot: its description, QEMU's command line, the jail around it, and the process."""
