"""Images as tensors: transforms and augmentation."""
