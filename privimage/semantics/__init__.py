"""From images to meaning: the public classifier, the index of the public set, the noisy query, the selection."""
