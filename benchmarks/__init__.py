"""The same stub model behind polypod and behind other ways to serve it, side by side."""
