"""The generator: an EDM-preconditioned U-Net, its public training, its private fine-tuning, and sampling."""
