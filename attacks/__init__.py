"""Attacks: one file per method."""
