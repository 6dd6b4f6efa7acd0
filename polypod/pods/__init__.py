"""Where pods come from: rented machines that serve a model, or processes on this one."""
