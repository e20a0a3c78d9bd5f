"""The process that holds a GPU and asks for chunks."""
