"""Byte formats that several rooms share: CBOR, COSE and cpio."""
