"""Runs that survive: configuration, preflight, the loop, diagnostics, the run directory."""
