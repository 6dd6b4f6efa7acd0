from types import SimpleNamespace

cfg = SimpleNamespace(model=SimpleNamespace(n_shape=200, n_exp=50))
