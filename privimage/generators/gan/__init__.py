"""GANs: painter and discriminator."""
