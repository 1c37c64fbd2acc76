"""PDT at tuned learning rates: pairs and arms, and their tables and pictures."""
