"""The router: one address for every model, and the endpoints behind it."""
