"""One file per step, in order; what is released is never changed."""
