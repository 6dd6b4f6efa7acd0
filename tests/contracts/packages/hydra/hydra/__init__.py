"""Stands for hydra-core; see hydra/utils.py."""
