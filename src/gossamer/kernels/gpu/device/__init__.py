"""The Triton kernels. Only imported where one is about to run: importing them imports Triton."""
