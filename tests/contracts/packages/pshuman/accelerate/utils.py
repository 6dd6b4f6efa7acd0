import standin


def set_seed(seed: int, device_specific: bool = False) -> None:
    standin.note("set_seed", {"seed": seed})
