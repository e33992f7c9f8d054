"""Alcove: an open, self-hosted implementation of the AWS Nitro Enclaves system."""

__version__ = "0.1.0"
