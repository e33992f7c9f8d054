"""Virtqueues in memory that a hostile guest shares."""
