"""The arithmetic under `gossamer.nn`: native kernels, each with a plain-torch reference that gives the same results."""
