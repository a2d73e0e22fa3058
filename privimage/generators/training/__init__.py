"""Training by gradients of images, public and private, that kinds share."""
