"""The command line: it parses, calls and prints; nothing below it does any of the three."""
