"""Generators by diffusion: the denoiser, its solver, class mean images, and canaries for the audit."""
