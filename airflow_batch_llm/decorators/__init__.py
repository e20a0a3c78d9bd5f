"""Makes tasks of functions."""
