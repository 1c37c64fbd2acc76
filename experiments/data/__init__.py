"""What is trained on: images, text, augmentations, and which examples make up a batch."""
