"""Single cells: counts of genes, annotations, texts and surface proteins, from file to report."""
