"""The process with the HTTP API, and the duties it has its child processes do."""

import os

# Arrow's own allocator keeps what it once had: some 50 MB in each process of the service, for no speed here.
# It must be said before pyarrow is imported for the first time.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
