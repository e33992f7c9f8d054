"""Fakes that test suites may use, ours and others': each is a whole peer, not a mock."""
