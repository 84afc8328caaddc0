"""Images as arrays: stain, morphology of nuclei, tissue, watershed."""
