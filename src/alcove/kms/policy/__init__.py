"""AWS's policy language: documents, principals, conditions and the decision (kms.md §7, §8)."""
