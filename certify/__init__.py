"""Certifiers: one file per method."""
