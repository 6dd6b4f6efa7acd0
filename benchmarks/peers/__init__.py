"""Other ways to serve the stub model."""
