"""Molecules: SMILES, descriptors and atom graphs, from file to report."""
