"""4. Proof: attestation documents, the authority that issues their certificates, the recipe that checks them."""
