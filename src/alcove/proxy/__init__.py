"""The parent's relays between enclaves and the network (cli.md §6)."""
