"""Applications for enclaves; each is a room of its own."""
