"""What is measured of networks before any training: zero-cost scores, tangent kernels, TE-NAS."""
