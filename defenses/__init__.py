"""Training defenses: one file per method."""
