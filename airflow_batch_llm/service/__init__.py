"""The process with the HTTP API, and the duties it has its child processes do."""
