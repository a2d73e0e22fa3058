"""The code of backbones, one kind a file."""
