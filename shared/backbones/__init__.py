"""From tokens to tokens: attention, blocks, the transformer, convolution, graphs, fusion, generation."""
