"""Ready loaders for data of your own: `ArrayFiles` and `ImageFolders`. What can be computed need not be said."""
