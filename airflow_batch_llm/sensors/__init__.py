"""Waits for batches that something else submitted."""
