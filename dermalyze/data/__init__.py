"""What becomes of files on disk: manifest, audit, splits, pixels, augmentation, batches."""
