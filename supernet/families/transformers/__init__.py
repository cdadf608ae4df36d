"""What transformers of texts and of images have in common: the choices of their blocks, and how tokens are mixed."""
