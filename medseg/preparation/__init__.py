"""Prepared data: checks, fingerprint, plan, normalisation, the store; one case, then all."""
