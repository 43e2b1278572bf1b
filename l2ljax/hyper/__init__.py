"""Metaparameters: search, implicit hypergradients, hypernetworks."""

__all__: list[str] = []
