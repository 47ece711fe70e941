"""Reading, checking, augmenting and batching images with their boxes."""
