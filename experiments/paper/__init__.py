"""The paper's tables and figures: what they train, what they claim, how they are drawn."""
